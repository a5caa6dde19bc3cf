package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/hostdir"
	"github.com/imagectl/imagectl/images/upload/s3"
	"github.com/imagectl/imagectl/images/upload/staging"
)

// place is where a platform can fetch from.
type place struct {
	// direct is where somebody has put the file already; empty for nowhere.
	direct string
	// towards is what the platform is reached by, for the address of this machine on
	// the way there.
	towards string
	// path says that the platform reads a path of its own, too.
	path bool
}

// source is what the platform fetches from: where the file is already, where option
// stage says, or else a server here, if anything is to be uploaded.
func (g *globals) source(ctx context.Context, d destination, s *stageFlags, p place) (src upload.Source, stop func(), err error) {
	name := d.Options["stage"]
	switch {
	case p.direct != "" && name != "":
		return nil, nil, usageError{fmt.Errorf("upload target %s: option stage says where to put the file, and option directory or frontendDirectory that it is there already; want one of them", d.Name)}
	case p.direct != "":
		if u, err := url.Parse(p.direct); !p.path && (err != nil || u.Host == "" || u.RawQuery != "" || u.Scheme != "http" && u.Scheme != "https") {
			return nil, nil, usageError{fmt.Errorf("upload target %s: option directory %q: want an http or https URL without a query", d.Name, p.direct)}
		}
		return staging.Direct(p.direct), func() {}, nil
	case name != "":
		src, stop, err = g.staged(ctx, d, s, p, name)
		return src, stop, err
	case s == nil:
		return nil, func() {}, nil
	}
	server, stop, err := stage(ctx, p.towards, *s)
	if err != nil {
		return nil, nil, err
	}
	return server, stop, nil
}

const (
	// urlSlack is how much longer than the upload a URL lasts.
	urlSlack = 5 * time.Minute
	// urlLimit is the longest life that stores give a URL.
	urlLimit = 7 * 24 * time.Hour
)

// staged is the source at another entry of upload.
func (g *globals) staged(ctx context.Context, d destination, s *stageFlags, p place, name string) (upload.Source, func(), error) {
	at, err := g.destination(name)
	if err != nil {
		return nil, nil, err
	}
	at.watch = d.watch
	if at.Type == "ssh" {
		if at.Options["url"] == "" && !p.path {
			return nil, nil, usageError{fmt.Errorf("upload target %s: it fetches from a URL: give %s option url, where the host serves the directory", d.Name, name)}
		}
		return g.hostDir(ctx, at)
	}
	c, err := g.bucket(at)
	if err != nil {
		return nil, nil, err
	}
	life := urlLimit
	if s != nil {
		life = min(s.life+urlSlack, urlLimit)
	}
	src, err := s3.NewSource(c, s3.SourceConfig{Life: life, ACL: at.Options["acl"], Client: &http.Client{Transport: c.Transport}})
	if err != nil {
		return nil, nil, badDestination(at, err)
	}
	return src, func() {}, nil
}

// hostDir is a directory of a host. The key to log in with is looked for when it is
// needed.
func (g *globals) hostDir(ctx context.Context, d destination) (upload.Source, func(), error) {
	var agentConn net.Conn
	stop := func() {
		if agentConn != nil {
			agentConn.Close()
		}
	}
	signers := func() (all []ssh.Signer, err error) {
		if d.Password != (cluster.Secret{}) {
			all, err = g.sshKey(d)
			return all, err
		}
		stop()
		if agentConn, err = sshAgent(ctx); err != nil {
			return nil, badDestination(d, err)
		}
		return agent.NewClient(agentConn).Signers()
	}
	src, err := hostdir.New(hostdir.Config{
		Endpoint: d.Endpoint, HostKey: d.Options["hostKey"], URL: d.Options["url"],
		Auth: []ssh.AuthMethod{ssh.PublicKeysCallback(signers)}, Dial: d.watch.Dialer((&net.Dialer{}).DialContext),
	})
	if err != nil {
		return nil, nil, badDestination(d, err)
	}
	return src, stop, nil
}

// sshKey is the private key that password names.
func (g *globals) sshKey(d destination) ([]ssh.Signer, error) {
	text, err := g.uploadSecret(d)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePrivateKey([]byte(text + "\n"))
	if err != nil {
		return nil, badDestination(d, fmt.Errorf("reading the private key that password names: %w; one with a passphrase belongs into ssh-agent: leave password out then", err))
	}
	return []ssh.Signer{key}, nil
}

func sshAgent(ctx context.Context) (net.Conn, error) {
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil, errors.New("there is neither password, which names a private key, nor ssh-agent (SSH_AUTH_SOCK)")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("asking ssh-agent: %w", err)
	}
	return conn, nil
}

// stage opens the server that the platform fetches from. Nothing is on it yet.
func stage(ctx context.Context, endpoint string, s stageFlags) (*staging.Server, func(), error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.listen)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("opening --listen %s: %w", s.listen, err)}
	}
	base := s.advertise
	if base == "" {
		if base, err = reachedFrom(ctx, endpoint, l.Addr()); err != nil {
			return nil, nil, errors.Join(err, l.Close())
		}
	} else if u, err := url.Parse(base); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, nil, errors.Join(usageError{fmt.Errorf("--advertise %q is not an http or https URL", base)}, l.Close())
	}
	server := staging.New(base)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It ends with ctx, or with the socket; then the platform says what it misses.
		_ = server.Serve(ctx, l)
	}()
	return server, func() {
		cancel()
		<-done
	}, nil
}

// reachedFrom is a socket's URL with the address that this machine has on the way
// to the platform. Connecting UDP sends nothing.
func reachedFrom(ctx context.Context, endpoint string, at net.Addr) (string, error) {
	tcp, ok := at.(*net.TCPAddr)
	if !ok {
		return "", fmt.Errorf("--listen gave %s, which is no TCP address", at)
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		u, err := url.Parse(endpoint)
		if err != nil {
			return "", fmt.Errorf("reading endpoint %s: %w", endpoint, err)
		}
		c, err := (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), "9"))
		if err != nil {
			return "", codedError{exitServer, fmt.Errorf("finding this machine's address on the way to %s: %w; give --advertise", u.Host, err)}
		}
		defer c.Close()
		local, ok := c.LocalAddr().(*net.UDPAddr)
		if !ok {
			return "", fmt.Errorf("finding this machine's address: %s is none; give --advertise", c.LocalAddr())
		}
		host = local.IP.String()
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(tcp.Port)), nil
}
