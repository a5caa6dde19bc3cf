package cli

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/upload"
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
	}
	return nil, usageError{fmt.Errorf("upload target %s: type %s is not supported yet", d.Name, d.Type)}
}

func (g *globals) s3(d destination) (upload.Target, error) {
	secret, err := g.uploadSecret(d)
	if err != nil {
		return nil, err
	}
	client, err := g.uploadClient(d)
	if err != nil {
		return nil, err
	}
	t, err := s3.New(s3.Config{
		Endpoint: d.Endpoint, Bucket: d.Bucket, Region: d.Region, Prefix: d.Options["prefix"],
		AccessKey: d.Username, SecretKey: secret, Transport: client.Transport, Now: time.Now,
	})
	return t, badDestination(d, err)
}

func (g *globals) oci(d destination) (upload.Target, error) {
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

// badDestination is an entry of cluster.yaml that its platform's package refuses.
func badDestination(d destination, err error) error {
	if err == nil {
		return nil
	}
	return usageError{fmt.Errorf("upload target %s: %w", d.Name, err)}
}
