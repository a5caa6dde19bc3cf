package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
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
	c := digitalocean.Config{API: d.Endpoint, Token: token, Region: d.Region, Transport: client.Transport, Wait: passTime, Mark: rand.Text, Now: time.Now}
	if s != nil && s.advertise == "" && d.Endpoint == "" && d.Options["directory"] == "" && d.Options["stage"] == "" {
		return nil, nil, usageError{fmt.Errorf("upload target %s: DigitalOcean fetches the image over the internet: give --listen with a fixed port and --advertise with the public URL of it, or set option stage to a bucket (docs/upload-digitalocean.md)", d.Name)}
	}
	var stop func()
	if c.Source, stop, err = g.source(ctx, d, s, place{direct: d.Options["directory"], towards: d.Endpoint}); err != nil {
		return nil, nil, err
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
		Transport: client.Transport, Dial: d.watch.Dialer((&net.Dialer{}).DialContext), Random: rand.Reader, Wait: passTime, Mark: rand.Text, Now: time.Now,
	})
	return t, badDestination(d, err)
}
