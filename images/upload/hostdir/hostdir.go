// Package hostdir is an upload.Source that puts a file into a directory of a host by
// SFTP: the front-end of a platform, which reads its own disk, or a web server, from
// which a platform fetches.
//
// A file is sent under another name and gets its own when all of it is there. Both
// begin with what cannot be guessed. The host is known by its key, which the
// configuration names; an unknown one is refused. SFTP compares no digest: the
// platform has to, or SSH's own integrity has to do.
package hostdir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/sshconn"
)

// Config says where and who. URL may be empty.
type Config struct {
	// Endpoint is ssh://USER@HOST[:PORT]/DIRECTORY.
	Endpoint string
	// HostKey is the host's public key, as ssh-keyscan prints it after the name:
	// "ssh-ed25519 AAAA…".
	HostKey string
	// Auth are the ways to log in.
	Auth []ssh.AuthMethod
	// URL is where the directory is served; without one the platform reads the path.
	URL  string
	Dial sshconn.Dialer
}

// Source is an upload.Source. It may be used by several goroutines.
type Source struct {
	address, dir, url string
	dial              sshconn.Dialer
	login             *ssh.ClientConfig
}

// errHostKey: the host has another key than the pinned one.
var errHostKey = errors.New("the host's key is not the pinned one")

// New connects to nothing yet.
func New(c Config) (*Source, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "ssh" || u.Hostname() == "" || u.User.Username() == "" || u.RawQuery != "" || !path.IsAbs(u.Path) || path.Clean(u.Path) == "/" {
		return nil, errors.New("reading the endpoint: want ssh://USER@HOST[:PORT]/DIRECTORY")
	}
	if _, has := u.User.Password(); has {
		return nil, errors.New("reading the endpoint: it must not carry a password; want ssh://USER@HOST[:PORT]/DIRECTORY")
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(c.HostKey))
	if err != nil {
		return nil, fmt.Errorf("reading the host's key %q: %w; want what ssh-keyscan -t ed25519 %s prints after the name, compared with the host's own", c.HostKey, err, u.Hostname())
	}
	if c.URL != "" {
		if at, err := url.Parse(c.URL); err != nil || at.Host == "" || at.RawQuery != "" || at.Scheme != "http" && at.Scheme != "https" {
			return nil, fmt.Errorf("reading the directory's URL %q: want an http or https URL without a query", c.URL)
		}
	}
	port := u.Port()
	if port == "" {
		port = "22"
	}
	return &Source{
		address: net.JoinHostPort(u.Hostname(), port), dir: path.Clean(u.Path), url: strings.TrimRight(c.URL, "/"), dial: c.Dial,
		login: &ssh.ClientConfig{User: u.User.Username(), Auth: c.Auth, HostKeyAlgorithms: algorithms(key.Type()), HostKeyCallback: pinned(key)},
	}, nil
}

// algorithms are those of signatures by a type of key.
func algorithms(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{keyType}
}

func pinned(want ssh.PublicKey) ssh.HostKeyCallback {
	fixed := ssh.FixedHostKey(want)
	return func(name string, at net.Addr, key ssh.PublicKey) error {
		if fixed(name, at, key) != nil {
			return fmt.Errorf("%w: it is %s, and %s is pinned", errHostKey, ssh.FingerprintSHA256(key), ssh.FingerprintSHA256(want))
		}
		return nil
	}
}

// leftFile is a staged file; its name is the path.
const leftFile = "staged file"

// partSuffix is of a file that is being sent.
const partSuffix = ".part"

// Stage implements upload.Source.
func (s *Source) Stage(ctx context.Context, w upload.Wanted, j upload.Journal, ev upload.Events) (string, func(), error) {
	if w.Name == "" || path.Base(w.Name) != w.Name || strings.ContainsAny(w.Name, "?#%\\") {
		return "", nil, fmt.Errorf("naming %q on the host: want a name without / \\ ? # %%", w.Name)
	}
	left, again := upload.LeftStaged(j, leftFile)
	if again = again && s.mine(left.Name) && strings.HasSuffix(left.Name, "-"+w.Name); !again {
		left = upload.Leftover{Kind: leftFile, Name: path.Join(s.dir, strings.ToLower(rand.Text())+"-"+w.Name)}
	}
	if err := j.Write(left); err != nil {
		return "", nil, err
	}
	if err := s.with(ctx, "putting "+left.Name+" there", func(h *host) error {
		if again && h.has(left.Name, w.Image.Size) {
			ev(upload.Event{Phase: "sending", Note: left.Name + " is there from an earlier upload"})
			return nil
		}
		return h.put(left.Name, w.Image, ev)
	}); err != nil {
		return "", nil, err
	}
	at := left.Name
	if s.url != "" {
		at = s.url + "/" + path.Base(left.Name)
	}
	return at, func() { upload.ReleaseStaged(ctx, s, left, j, ev) }, nil
}

// mine tells whether a path may be of a staged file.
func (s *Source) mine(file string) bool {
	return path.Dir(file) == s.dir && path.Clean(file) == file && len(path.Base(file)) > len(rand.Text())
}

// Clean implements upload.Source.
func (s *Source) Clean(ctx context.Context, left upload.Leftover) (bool, error) {
	if left.Kind != leftFile {
		return false, nil
	}
	if !s.mine(left.Name) {
		return true, fmt.Errorf("cleaning %q: it is no staged file of %s", left.Name, s.dir)
	}
	return true, s.with(ctx, "removing "+left.Name, func(h *host) error {
		for _, name := range []string{left.Name + partSuffix, left.Name} {
			if err := h.files.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

var _ upload.Source = (*Source)(nil)
