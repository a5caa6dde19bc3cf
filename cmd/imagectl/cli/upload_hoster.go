package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/digitalocean"
	"github.com/imagectl/imagectl/images/upload/hetzner"
)

func (g *globals) digitalOcean(ctx context.Context, d destination, s *stageFlags) (upload.Target, func(), error) {
	token, err := g.uploadSecret(d)
	if err != nil {
		return nil, nil, err
	}
	client, err := g.uploadClient(d)
	if err != nil {
		return nil, nil, err
	}
	c := digitalocean.Config{API: d.Endpoint, Token: token, Region: d.Region, Transport: client.Transport, Wait: rest, Mark: rand.Text, Now: time.Now}
	stop := func() {}
	if dir := d.Options["directory"]; dir != "" {
		if u, err := url.Parse(dir); err != nil || u.Host == "" || u.RawQuery != "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, nil, usageError{fmt.Errorf("upload target %s: option directory %q: want an http or https URL without a query", d.Name, dir)}
		}
		c.Source = digitalocean.Directory(dir)
	} else if s != nil {
		if s.advertise == "" && d.Endpoint == "" {
			return nil, nil, usageError{fmt.Errorf("upload target %s: DigitalOcean fetches the image over the internet: give --listen with a fixed port and --advertise with the public URL of it, or put the file into a bucket and set option directory (docs/upload-digitalocean.md)", d.Name)}
		}
		if c.Source, stop, err = stage(ctx, d.Endpoint, *s); err != nil {
			return nil, nil, err
		}
	}
	t, err := digitalocean.New(c)
	if err != nil {
		stop()
		return nil, nil, badDestination(d, err)
	}
	return t, stop, nil
}

func (g *globals) hetzner(d destination) (upload.Target, error) {
	token, err := g.uploadSecret(d)
	if err != nil {
		return nil, err
	}
	client, err := g.uploadClient(d)
	if err != nil {
		return nil, err
	}
	t, err := hetzner.New(hetzner.Config{
		API: d.Endpoint, Token: token, Location: d.Region, ServerType: d.Options["serverType"],
		Transport: client.Transport, Dial: (&net.Dialer{}).DialContext, Random: rand.Reader, Wait: rest, Mark: rand.Text, Now: time.Now,
	})
	return t, badDestination(d, err)
}
