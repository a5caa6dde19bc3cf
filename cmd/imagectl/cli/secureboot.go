package cli

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	thishost "github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/pkcs11"
	"github.com/imagectl/imagectl/images/secureboot"
)

// addSigner reads the key of boot.secureBoot when something is to be signed. ctx
// ends a token's work too.
func (g *globals) addSigner(ctx context.Context, in *build.Inputs, p plan.Plan) error {
	sb := p.Boot.SecureBoot
	if in.Medium == nil || sb.Certificate == nil || !slices.Contains(in.Sets, build.SetISO) && !slices.Contains(in.Sets, build.SetUKI) {
		return nil
	}
	cert, err := secureboot.ParseCertificate(sb.Certificate)
	if err != nil {
		return fmt.Errorf("reading boot.secureBoot.certificate: %w", err)
	}
	var s *secureboot.Signer
	if strings.HasPrefix(sb.Key.File, pkcs11.Scheme) {
		s, err = g.tokenSigner(ctx, sb, cert)
	} else {
		var key []byte
		if key, err = g.signingSecret(sb.Key); err != nil {
			return fmt.Errorf("reading boot.secureBoot.key: %w", err)
		}
		s, err = secureboot.NewSigner(key, cert)
	}
	if err != nil {
		return fmt.Errorf("using boot.secureBoot: %w", err)
	}
	in.Medium.Signer = s
	return nil
}

// tokenSigner signs with a key that stays in its token.
func (g *globals) tokenSigner(ctx context.Context, sb cluster.SecureBoot, cert *x509.Certificate) (*secureboot.Signer, error) {
	uri, err := pkcs11.ParseURI(sb.Key.File)
	if err != nil {
		return nil, err
	}
	public, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the certificate %q has a key that is not RSA", cert.Subject)
	}
	pin, err := g.signingSecret(sb.PIN)
	if err != nil {
		return nil, fmt.Errorf("reading its pin: %w", err)
	}
	key, err := pkcs11.NewKey(uri, strings.TrimRight(string(pin), "\r\n"), public, func(argv, env []string, stdin []byte) ([]byte, error) {
		return new(thishost.Host).Run(ctx, thishost.Command{Argv: argv, Env: env, Stdin: stdin})
	})
	if err != nil {
		return nil, err
	}
	return secureboot.WithKey(key, cert)
}

// signingSecret reads what cluster.yaml only refers to.
func (g *globals) signingSecret(s cluster.Secret) ([]byte, error) {
	if s.Env != "" {
		v := os.Getenv(s.Env)
		if v == "" {
			return nil, fmt.Errorf("the environment variable %s is empty", s.Env)
		}
		return []byte(v), nil
	}
	path := s.File
	if !filepath.IsAbs(path) {
		path = filepath.Join(g.dir(), path)
	}
	return os.ReadFile(path)
}

func newSecureBoot(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secureboot",
		Short: "Make keys for Secure Boot and the files that enrol them",
		Long: "Make keys for UEFI Secure Boot and the files that enrol them in firmware. What\n" +
			"imagectl build --format iso,uki makes is signed when cluster.yaml has\n" +
			"boot.secureBoot (docs/images.md).",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see imagectl secureboot --help", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSecureBootKeys(g), newSecureBootEnrol(g))
	return cmd
}

// oneDirectory wants one argument.
func oneDirectory(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("%s takes one directory, got %d; see %s --help", cmd.Name(), len(args), cmd.CommandPath())}
	}
	return nil
}

func newSecureBootKeys(g *globals) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "keys DIR",
		Short: "Make the three keys of a platform",
		Long: "Make PK.key, KEK.key and db.key with a certificate (.crt) of each. db signs what\n" +
			"machines boot; KEK signs changes of what they take, PK changes of KEK: keep those\n" +
			"two where no build reads them. Nothing that exists is overwritten.",
		Example: "  imagectl secureboot keys keys/secureboot --name prod",
		Args:    oneDirectory,
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" || len(name) > 40 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' }) {
				return usageError{fmt.Errorf("name %q: want 1 to 40 printable ASCII characters", name)}
			}
			dir := args[0]
			if err := writeKeys(dir, name, time.Now(), rand.Reader); err != nil {
				return err
			}
			_, err := fmt.Fprintf(g.stdio.Out, "wrote PK, KEK and db (.key, .crt) in %s\nnext: imagectl secureboot enrol %s, and in cluster.yaml under boot:\n  secureBoot:\n    certificate: %s\n    key: {file: %s}\n",
				dir, dir, filepath.Join(dir, "db.crt"), filepath.Join(dir, "db.key"))
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "imagectl", "what the certificates are called, such as the site")
	return cmd
}

// platformKeys are the names of keys, and of the variables they go into.
func platformKeys() []string { return []string{"PK", "KEK", "db"} }

func writeKeys(dir, name string, now time.Time, random io.Reader) error {
	type file struct {
		path    string
		mode    fs.FileMode
		content []byte
	}
	var files []file
	for _, k := range platformKeys() {
		files = append(files, file{filepath.Join(dir, k+".key"), 0o600, nil}, file{filepath.Join(dir, k+".crt"), 0o644, nil})
	}
	for _, f := range files {
		if _, err := os.Lstat(f.path); err == nil {
			return usageError{fmt.Errorf("%s exists already and nothing was written; name another directory", f.path)}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("making keys: %w", err)
		}
	}
	for i, k := range platformKeys() {
		p, err := secureboot.Generate(name+" Secure Boot "+k, now, random)
		if err != nil {
			return err
		}
		files[2*i].content, files[2*i+1].content = p.Key, p.Certificate
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making keys: %w", err)
	}
	for i, f := range files {
		if err := writeNew(f.path, f.mode, f.content); err != nil {
			// A set that is not complete is no set.
			for _, g := range files[:i] {
				os.Remove(g.path)
			}
			return fmt.Errorf("making keys: %w", err)
		}
	}
	return nil
}

// writeNew writes a file that does not exist yet: whoever was quicker keeps his.
func writeNew(path string, mode fs.FileMode, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

func newSecureBootEnrol(g *globals) *cobra.Command {
	var out, at string
	var others []string
	cmd := &cobra.Command{
		Use:   "enrol DIR",
		Short: "Write the files that enrol keys in firmware",
		Long: "Write PK, KEK and db as authenticated variables (.auth), signature lists (.esl)\n" +
			"and certificates (.cer) from the keys in DIR. db's private key is not needed.\n\n" +
			"Machines whose firmware has no platform key take the files in any way that it\n" +
			"offers; docs/images.md shows one. Those that are enrolled take a newer db.auth or\n" +
			"KEK.auth, whose time must be later than that of the last.",
		Example: "  imagectl secureboot enrol keys/secureboot\n" +
			"  imagectl secureboot enrol keys/secureboot --also flatcar-sb-dev-ca.pem -o usb/loader/keys/auto",
		Args: oneDirectory,
		RunE: func(cmd *cobra.Command, args []string) error {
			when := time.Now()
			if at != "" {
				var err error
				if when, err = time.Parse(time.RFC3339, at); err != nil {
					return usageError{fmt.Errorf("time %q: want such as 2026-08-13T10:00:00Z", at)}
				}
			}
			if out == "" {
				out = filepath.Join(args[0], "enrol")
			}
			keys, err := readPlatformKeys(args[0], others)
			if err != nil {
				return usageError{err}
			}
			files, err := keys.Enrolment(when)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(out, 0o755); err != nil {
				return fmt.Errorf("writing enrolment files: %w", err)
			}
			for _, f := range files {
				if err := writeWhole(filepath.Join(out, f.Name), f.Content); err != nil {
					return fmt.Errorf("writing enrolment files: %w", err)
				}
			}
			_, err = fmt.Fprintf(g.stdio.Out, "wrote PK, KEK and db (.auth, .esl, .cer) in %s, as of %s\ndb takes what is signed by %s\n",
				out, when.UTC().Format(time.RFC3339), strings.Join(subjects(keys.DB), " and by "))
			return err
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "output directory (default DIR/enrol)")
	cmd.Flags().StringVar(&at, "time", "", "time in the .auth files, RFC 3339 (default now)")
	cmd.Flags().StringSliceVar(&others, "also", nil, "further certificates for db, such as Flatcar's, PEM or DER")
	return cmd
}

func readPlatformKeys(dir string, others []string) (secureboot.Keys, error) {
	var keys secureboot.Keys
	for _, k := range []struct {
		name string
		to   **secureboot.Signer
	}{{"PK", &keys.PK}, {"KEK", &keys.KEK}} {
		path := filepath.Join(dir, k.name+".key")
		cert, err := readCertificate(filepath.Join(dir, k.name+".crt"))
		if err != nil {
			return keys, err
		}
		key, err := os.ReadFile(path)
		if err != nil {
			return keys, fmt.Errorf("reading keys: %w", err)
		}
		if *k.to, err = secureboot.NewSigner(key, cert); err != nil {
			return keys, fmt.Errorf("reading %s: %w", path, err)
		}
	}
	for _, path := range append([]string{filepath.Join(dir, "db.crt")}, others...) {
		cert, err := readCertificate(path)
		if err != nil {
			return keys, err
		}
		keys.DB = append(keys.DB, cert)
	}
	return keys, nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	cert, err := secureboot.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return cert, nil
}

func subjects(certs []*x509.Certificate) []string {
	var out []string
	for _, c := range certs {
		out = append(out, c.Subject.String())
	}
	return out
}

// writeWhole replaces a file by a whole one.
func writeWhole(path string, content []byte) error {
	tmp := path + ".tmp"
	os.Remove(tmp)
	if err := writeNew(tmp, 0o644, content); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}
