package cli

import (
	"cmp"
	"fmt"
	"os"
	"time"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/aws"
	"github.com/imagectl/imagectl/images/upload/azure"
	"github.com/imagectl/imagectl/images/upload/gcp"
)

// cloud makes the target of one of the large clouds.
func (g *globals) cloud(d destination) (upload.Target, error) {
	spec, err := g.spec()
	if err != nil {
		return nil, err
	}
	client, err := g.uploadClient(d)
	if err != nil {
		return nil, err
	}
	arm := spec.Flatcar.Arch == "arm64"
	switch d.Type {
	case "aws":
		c := aws.Config{Region: d.Region, Endpoint: d.Endpoint, Prefix: d.Options["parameter"], Arch: "x86_64", Transport: client.Transport, Wait: passTime, Now: time.Now}
		if arm {
			c.Arch = "arm64"
		}
		if c.AccessKey, c.SecretKey, c.SessionToken, err = g.awsKeys(d); err != nil {
			return nil, err
		}
		t, err := aws.New(c)
		return t, badDestination(d, err)
	case "azure":
		c := azure.Config{
			Subscription: d.Options["subscription"], ResourceGroup: d.Options["resourceGroup"], Gallery: d.Datastore, Location: d.Region,
			Tenant: d.Options["tenant"], ClientID: d.Username, Endpoint: d.Endpoint, Login: d.Options["login"], Arch: "x64", Transport: client.Transport, Wait: passTime, Now: time.Now,
		}
		if arm {
			c.Arch = "Arm64"
		}
		secret, err := g.uploadSecret(d)
		if err != nil {
			return nil, err
		}
		if c.ClientSecret = secret; d.Username == "" {
			c.ClientSecret, c.Token = "", secret
		}
		t, err := azure.New(c)
		return t, badDestination(d, err)
	case "gcp":
		c := gcp.Config{Project: d.Options["project"], Bucket: d.Bucket, Location: d.Region, Endpoint: d.Endpoint, Arch: "X86_64", Transport: client.Transport, Wait: passTime, Now: time.Now}
		if arm {
			c.Arch = "ARM64"
		}
		if c.Credentials, err = g.uploadSecret(d); err != nil {
			return nil, err
		}
		t, err := gcp.New(c)
		return t, badDestination(d, err)
	}
	return nil, usageError{fmt.Errorf("upload target %s: type %s is not supported yet", d.Name, d.Type)}
}

// awsKeys are those of cluster.yaml or, without any there, of the environment, where
// Amazon's own tools and sign-in helpers put them.
func (g *globals) awsKeys(d destination) (access, secret, session string, err error) {
	if d.Username == "" && d.Password == (cluster.Secret{}) {
		access, secret, session = os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")
		if cmp.Or(access, secret) == "" {
			err = usageError{fmt.Errorf("upload target %s: there is neither username and password nor AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment", d.Name)}
		}
		return access, secret, session, err
	}
	if d.Username == "" || d.Password == (cluster.Secret{}) {
		return "", "", "", usageError{fmt.Errorf("upload target %s: username without password, or password without username; leave both out for AWS_ACCESS_KEY_ID and so on from the environment", d.Name)}
	}
	secret, err = g.uploadSecret(d)
	return d.Username, secret, "", err
}
