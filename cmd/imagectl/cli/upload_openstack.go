package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/config/clouds"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/glance"
)

// openStack knows three ways to say who uploads: an application credential in
// cluster.yaml's words, a cloud of clouds.yaml, or the environment of OpenStack's own
// client.
func (g *globals) openStack(ctx context.Context, d destination, s *stageFlags) (upload.Target, func(), error) {
	base, err := g.uploadTransport(d)
	if err != nil {
		return nil, nil, err
	}
	auth, at, trust, err := g.openStackAuth(d)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("upload target %s: %w", d.Name, err)}
	}
	if trust != nil && d.Options["ca"] == "" {
		trust.MinVersion = tls.VersionTLS12
		base.TLSClientConfig = trust
	}
	transport, err := d.trusting(base, auth.IdentityEndpoint)
	if err != nil {
		return nil, nil, err
	}
	c := glance.Config{
		Auth: auth, Endpoint: at, Insecure: d.Insecure, Method: glance.Method(d.Options["import"]), Visibility: d.Options["visibility"],
		Client: &http.Client{Transport: transport}, Wait: pause, Mark: rand.Text, Now: time.Now,
	}
	if c.Properties, err = openStackMachine(d); err != nil {
		return nil, nil, usageError{fmt.Errorf("upload target %s: %w", d.Name, err)}
	}
	stop := func() {}
	switch fetched := c.Method == glance.Download; {
	case fetched:
		if c.Source, stop, err = g.source(ctx, d, s, place{direct: d.Options["directory"], towards: auth.IdentityEndpoint}); err != nil {
			return nil, nil, err
		}
	case d.Options["stage"] != "" || d.Options["directory"] != "":
		return nil, nil, badDestination(d, fmt.Errorf("option stage and option directory want import: %s, for nothing is fetched otherwise", glance.Download))
	}
	t, err := glance.New(c)
	if err != nil {
		stop()
		return nil, nil, badDestination(d, err)
	}
	return t, stop, nil
}

func (g *globals) openStackAuth(d destination) (auth gophercloud.AuthOptions, at gophercloud.EndpointOpts, trust *tls.Config, err error) {
	at = gophercloud.EndpointOpts{Region: d.Region}
	explicit := d.Endpoint != "" || d.Username != "" || d.Password != (cluster.Secret{})
	switch cloud := d.Options["cloud"]; {
	case cloud != "" && explicit:
		return auth, at, nil, errors.New("option cloud names an entry of clouds.yaml, which says endpoint, username and password; leave them out here")
	case cloud != "":
		options := []clouds.ParseOption{clouds.WithCloudName(cloud)}
		if d.Region != "" {
			options = append(options, clouds.WithRegion(d.Region))
		}
		auth, at, trust, err = clouds.Parse(options...)
		return auth, at, trust, err
	case explicit:
		if d.Endpoint == "" || d.Username == "" || d.Password == (cluster.Secret{}) {
			return auth, at, nil, errors.New("an application credential takes endpoint (Keystone's), username (the credential's ID) and password (its secret); or set option cloud; or leave out all, for the environment")
		}
		secret, err := g.uploadSecret(d)
		return gophercloud.AuthOptions{IdentityEndpoint: d.Endpoint, ApplicationCredentialID: d.Username, ApplicationCredentialSecret: secret}, at, nil, err
	}
	if auth, err = openstack.AuthOptionsFromEnv(); err != nil {
		err = fmt.Errorf("reading the environment of OpenStack's client: %w; source an openrc file, or set option cloud", err)
	}
	return auth, at, nil, err
}

// openStackMachine is what Nova is told of machines.
func openStackMachine(d destination) (map[string]string, error) {
	p := map[string]string{}
	switch f := d.Options["firmware"]; f {
	case "":
	case "bios":
		p["hw_firmware_type"] = f
	case "uefi":
		p["hw_firmware_type"], p["hw_machine_type"] = f, "q35"
	default:
		return nil, fmt.Errorf("option firmware %q is neither bios nor uefi", f)
	}
	switch b := d.Options["bus"]; b {
	case "":
	case "virtio":
		p["hw_disk_bus"] = b
	case "scsi":
		p["hw_disk_bus"], p["hw_scsi_model"] = b, "virtio-scsi"
	default:
		return nil, fmt.Errorf("option bus %q is neither virtio nor scsi", b)
	}
	return p, nil
}
