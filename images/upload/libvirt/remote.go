package libvirt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/sshconn"
)

// Local is what this machine's user reaches daemons by.
type Local struct {
	// RuntimeDir has the socket of the user's own daemon (XDG_RUNTIME_DIR).
	RuntimeDir string
	// Home has .ssh and .pki/libvirt; User is the name to log in with where a URI has none.
	Home, User string
	// Agent is ssh-agent's socket; empty for none.
	Agent string
}

// systemSocket is where a host's own libvirtd listens.
const systemSocket = "/var/run/libvirt/libvirt-sock"

// parameters are libvirt's own that are understood, by transport
// (https://libvirt.org/uri.html). One that is not must not be left out in silence:
// no_verify, for one, says that anybody may answer.
func parameters(scheme string) []string {
	switch scheme {
	case "qemu+ssh":
		return []string{"keyfile", "known_hosts", "socket"}
	case "qemu+tls":
		return []string{"pkipath"}
	}
	return []string{"socket"}
}

// overSSH dials a daemon's socket on a host that sshd lets us onto.
func overSSH(u *url.URL, l Local) (func(context.Context) (net.Conn, error), error) {
	socket := u.Query().Get("socket")
	switch {
	case socket == "" && u.Path == "/session":
		return nil, fmt.Errorf("reading the libvirt URI %q: a session over SSH needs ?socket=PATH, where the user's libvirtd listens there, for instance /run/user/1000/libvirt/libvirt-sock", u)
	case socket == "":
		socket = systemSocket
	}
	h := sshHost{
		Local: l, address: net.JoinHostPort(u.Hostname(), either(u.Port(), "22")), user: either(u.User.Username(), l.User),
		known: either(u.Query().Get("known_hosts"), filepath.Join(l.Home, ".ssh", "known_hosts")), key: u.Query().Get("keyfile"),
	}
	return func(ctx context.Context) (net.Conn, error) { return h.dial(ctx, socket) }, nil
}

func either(given, otherwise string) string {
	if given != "" {
		return given
	}
	return otherwise
}

// sshHost is a host as the user's ssh knows it.
type sshHost struct {
	Local
	address, user string
	// known is the known_hosts file, key the file of a private key; empty for those that
	// the user has.
	known, key string
}

// errLogin: we are not let in, or would not go in.
var errLogin = fmt.Errorf("%w over SSH", upload.ErrAuth)

func (h sshHost) dial(ctx context.Context, socket string) (net.Conn, error) {
	known, err := knownhosts.New(h.known)
	if err != nil {
		return nil, fmt.Errorf("%w: reading the hosts that are known: %w; log in once with ssh, and compare the key that it shows", errLogin, err)
	}
	signers, done, err := h.signers(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	client, err := sshconn.Dial(ctx, (&net.Dialer{}).DialContext, h.address, &ssh.ClientConfig{
		User: h.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)},
		HostKeyCallback: func(address string, remote net.Addr, key ssh.PublicKey) error {
			return h.trust(known, address, remote, key)
		},
		// A host has keys of several kinds: it is asked for one that is known.
		HostKeyAlgorithms: algorithms(known, h.address),
	})
	if err != nil {
		return nil, err
	}
	conn, err := client.DialContext(ctx, "unix", socket)
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("connecting to %s on %s: %w; does libvirtd listen there, and does sshd allow AllowStreamLocalForwarding?", socket, h.address, err)
	}
	return tunnel{conn, client}, nil
}

// tunnel is a connection that has an SSH connection for itself.
type tunnel struct {
	net.Conn
	client *ssh.Client
}

// Close implements net.Conn.
func (t tunnel) Close() error { return errors.Join(t.Conn.Close(), t.client.Close()) }

// trust asks the user's known_hosts.
func (h sshHost) trust(known ssh.HostKeyCallback, address string, remote net.Addr, key ssh.PublicKey) error {
	err := known(address, remote, key)
	var unfit *knownhosts.KeyError
	if !errors.As(err, &unfit) {
		return err
	}
	shown := key.Type() + " " + ssh.FingerprintSHA256(key)
	if len(unfit.Want) > 0 {
		return fmt.Errorf("%w: %s shows the key %s, and %s has another one: compare it with the host's own", errLogin, address, shown, h.known)
	}
	return fmt.Errorf("%w: %s is not in %s; it shows the key %s: compare it with the host's own, and log in once with ssh", errLogin, address, h.known, shown)
}

// algorithms are those of the keys that a host is known by; nil, for all, if it is not.
func algorithms(known ssh.HostKeyCallback, address string) (all []string) {
	// Who has no key is told which ones there are.
	var unfit *knownhosts.KeyError
	if !errors.As(known(address, &net.TCPAddr{IP: net.IPv4zero}, nobody{}), &unfit) {
		return nil
	}
	for _, k := range unfit.Want {
		kinds := []string{k.Key.Type()}
		if k.Key.Type() == ssh.KeyAlgoRSA {
			kinds = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
		}
		for _, kind := range kinds {
			if !slices.Contains(all, kind) {
				all = append(all, kind)
			}
		}
	}
	return all
}

// nobody is a key that no host has.
type nobody struct{}

// Type implements ssh.PublicKey.
func (nobody) Type() string { return "none" }

// Marshal implements ssh.PublicKey.
func (nobody) Marshal() []byte { return nil }

// Verify implements ssh.PublicKey.
func (nobody) Verify([]byte, *ssh.Signature) error { return errors.New("nobody signs") }

// signers are those of ssh-agent and of the user's files, or of the one file that the URI
// names. done is called when they are not used any more.
func (h sshHost) signers(ctx context.Context) (all []ssh.Signer, done func(), err error) {
	done = func() {}
	files := []string{h.key}
	if h.key == "" {
		files = nil
		for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			files = append(files, filepath.Join(h.Home, ".ssh", name))
		}
		if h.Agent != "" {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", h.Agent)
			if err != nil {
				return nil, done, fmt.Errorf("%w: asking ssh-agent: %w", errLogin, err)
			}
			done = func() { conn.Close() }
			if all, err = agent.NewClient(conn).Signers(); err != nil {
				done()
				return nil, func() {}, fmt.Errorf("%w: asking ssh-agent: %w", errLogin, err)
			}
		}
	}
	var locked error
	for _, name := range files {
		b, err := os.ReadFile(name)
		if h.key == "" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var key ssh.Signer
		if err == nil {
			key, err = ssh.ParsePrivateKey(b)
		}
		if err != nil {
			locked = errors.Join(locked, fmt.Errorf("reading %s: %w", name, err))
			continue
		}
		all = append(all, key)
	}
	if len(all) == 0 {
		done()
		return nil, func() {}, errors.Join(fmt.Errorf("%w: there is no key to log in to %s with: ssh-agent has none, and none in %v can be used; one with a passphrase belongs into ssh-agent", errLogin, h.address, files), locked)
	}
	return all, done, nil
}

// tlsPort is libvirtd's (https://libvirt.org/remote.html).
const tlsPort = "16514"

// pki is where the files of a client are.
type pki struct{ ca, cert, key string }

// pkis are the places where libvirt's own clients look, first the user's
// (https://libvirt.org/kbase/tlscerts.html).
func pkis(u *url.URL, home string) []pki {
	in := func(dir string) pki {
		return pki{filepath.Join(dir, "cacert.pem"), filepath.Join(dir, "clientcert.pem"), filepath.Join(dir, "clientkey.pem")}
	}
	if dir := u.Query().Get("pkipath"); dir != "" {
		return []pki{in(dir)}
	}
	return []pki{in(filepath.Join(home, ".pki", "libvirt")), {"/etc/pki/CA/cacert.pem", "/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem"}}
}

// config reads the files of the first place that has a certificate.
func config(places []pki) (*tls.Config, error) {
	for i, p := range places {
		cert, err := tls.LoadX509KeyPair(p.cert, p.key)
		if errors.Is(err, fs.ErrNotExist) && i < len(places)-1 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: reading the client's certificate: %w", upload.ErrAuth, err)
		}
		b, err := os.ReadFile(p.ca)
		if err != nil {
			return nil, fmt.Errorf("%w: reading the authority of the host's certificate: %w", upload.ErrAuth, err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%w: reading the authority of the host's certificate: there is no certificate in %s", upload.ErrAuth, p.ca)
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, RootCAs: roots}, nil
	}
	return nil, errors.New("there is no place for certificates")
}

// overTLS dials a daemon that listens itself.
func overTLS(u *url.URL, l Local) func(context.Context) (net.Conn, error) {
	address, places := net.JoinHostPort(u.Hostname(), either(u.Port(), tlsPort)), pkis(u, l.Home)
	return func(ctx context.Context) (net.Conn, error) {
		conf, err := config(places)
		if err != nil {
			return nil, err
		}
		conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		// The daemon looks at the client's certificate when the handshake is over, and
		// sends one byte, 1, or hangs up (virNetServerClientCheckTLSContext).
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		var good [1]byte
		if _, err := conn.Read(good[:]); err != nil || good[0] != 1 {
			conn.Close()
			if err == nil {
				err = fmt.Errorf("it answers %d", good[0])
			}
			if ctx.Err() != nil {
				return nil, err
			}
			return nil, fmt.Errorf("%w: %s does not take the client's certificate %s: %w; is it signed by the authority that the host trusts, and valid?", upload.ErrAuth, address, conf.Certificates[0].Leaf.Subject, err)
		}
		return conn, nil
	}
}
