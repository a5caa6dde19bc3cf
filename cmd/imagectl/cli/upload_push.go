package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/libvirt"
	"github.com/imagectl/imagectl/images/upload/oci"
	"github.com/imagectl/imagectl/images/upload/s3"
)

// push makes the target of a platform that is sent to: nothing is fetched here, and
// nothing has to be stopped.
func (g *globals) push(d destination) (upload.Target, error) {
	switch d.Type {
	case "s3":
		return g.s3(d)
	case "oci":
		return g.oci(d)
	case "libvirt":
		return g.libvirt(d)
	}
	return g.cloud(d)
}

func (g *globals) s3(d destination) (*s3.Target, error) {
	c, err := g.bucket(d)
	if err != nil {
		return nil, err
	}
	t, err := s3.New(c)
	return t, badDestination(d, err)
}

func (g *globals) bucket(d destination) (s3.Config, error) {
	secret, err := g.uploadSecret(d)
	if err != nil {
		return s3.Config{}, err
	}
	client, err := g.uploadClient(d)
	if err != nil {
		return s3.Config{}, err
	}
	return s3.Config{
		Endpoint: d.Endpoint, Bucket: d.Bucket, Region: d.Region, Prefix: d.Options["prefix"],
		AccessKey: d.Username, SecretKey: secret, Transport: client.Transport, Now: time.Now,
	}, nil
}

func (g *globals) oci(d destination) (*oci.Target, error) {
	u, err := url.Parse(d.Endpoint)
	if err != nil {
		return nil, badDestination(d, err)
	}
	client, err := g.uploadClient(d)
	if err != nil {
		return nil, err
	}
	c := oci.Config{
		Repository: u.Host + strings.TrimRight(u.Path, "/"), Plain: u.Scheme == "http", Form: oci.Form(d.Options["form"]),
		Keychain: authn.DefaultKeychain, Transport: client.Transport, Now: time.Now,
	}
	if d.Username != "" {
		if c.Username = d.Username; d.Password == (cluster.Secret{}) {
			return nil, usageError{fmt.Errorf("upload target %s: username without password; leave both out for what docker login stored", d.Name)}
		}
		if c.Password, err = g.uploadSecret(d); err != nil {
			return nil, err
		}
	}
	t, err := oci.New(c)
	return t, badDestination(d, err)
}

func (g *globals) libvirt(d destination) (upload.Target, error) {
	dial, driver, err := libvirt.Address(d.Endpoint, libvirtLocal())
	if err != nil {
		return nil, badDestination(d, err)
	}
	c := libvirt.Config{
		Dial: func(ctx context.Context) (net.Conn, error) {
			conn, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return d.watch.Conn(conn), nil
		},
		Driver: driver, Pool: d.Datastore, Network: d.Options["network"], Bridge: d.Options["bridge"],
		Firmware: libvirt.Firmware(d.Options["firmware"]), Random: rand.Reader, Now: time.Now,
	}
	if err := d.counts(map[string]*int{"vcpu": &c.CPUs, "memoryMB": &c.Memory}); err != nil {
		return nil, err
	}
	if v := d.Options["emulate"]; v != "" {
		if c.Emulate, err = strconv.ParseBool(v); err != nil {
			return nil, usageError{fmt.Errorf("upload target %s: option emulate %q is neither true nor false", d.Name, v)}
		}
	}
	node, err := g.uploadNode(d)
	if err != nil {
		return nil, err
	}
	c.Node = string(node)
	t, err := libvirt.New(c)
	return t, badDestination(d, err)
}

// libvirtLocal is what the user has to reach daemons by. Who has no home and no name has
// to say all in the endpoint.
func libvirtLocal() libvirt.Local {
	l := libvirt.Local{RuntimeDir: os.Getenv("XDG_RUNTIME_DIR"), Agent: os.Getenv("SSH_AUTH_SOCK")}
	l.Home, _ = os.UserHomeDir()
	if me, err := user.Current(); err == nil {
		l.User = me.Username
	}
	return l
}

// counts reads options that are numbers above 0.
func (d destination) counts(into map[string]*int) error {
	for _, name := range slices.Sorted(maps.Keys(into)) {
		v := d.Options[name]
		if v == "" {
			continue
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return usageError{fmt.Errorf("upload target %s: option %s %q is no number above 0", d.Name, name, v)}
		}
		*into[name] = n
	}
	return nil
}

// uploadNode reads option node; nil when there is none.
func (g *globals) uploadNode(d destination) ([]byte, error) {
	path := d.Options["node"]
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(g.inDir(path))
	if err != nil {
		return nil, usageError{fmt.Errorf("upload target %s: reading option node: %w; imagectl machines config writes it", d.Name, err)}
	}
	return b, nil
}

// badDestination is an entry of cluster.yaml that its platform's package refuses.
func badDestination(d destination, err error) error {
	if err == nil {
		return nil
	}
	return usageError{fmt.Errorf("upload target %s: %w", d.Name, err)}
}
