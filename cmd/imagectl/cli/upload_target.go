package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/opennebula"
	"github.com/imagectl/imagectl/images/upload/stall"
)

// destination is an entry of upload: in cluster.yaml.
type destination struct {
	cluster.Upload
	// watch sees what goes to it and comes from it; nil for nothing to watch.
	watch *stall.Watch
}

// key names the place in journals: two cluster.yaml may call two places one name. Who
// logs in there is no part of it: a token that was replaced leaves no journal behind.
func (d destination) key() string {
	where := []string{d.Type, d.Endpoint, d.Datastore, d.Region, d.Bucket}
	for _, o := range placeOptions() {
		if v := d.Options[o]; v != "" {
			where = append(where, o, v)
		}
	}
	sum := sha256.Sum256([]byte(strings.Join(where, "\x00")))
	return d.Name + "-" + hex.EncodeToString(sum[:4])
}

// placeOptions are the options that say which place it is, and not how it is used.
func placeOptions() []string {
	return []string{"cloud", "project", "resourceGroup", "subscription", "prefix", "datacenter", "folder"}
}

// place is what key is made of, for people.
func (d destination) place() string {
	words := []string{"type " + d.Type}
	add := func(name, value string) {
		if value != "" {
			words = append(words, name+" "+value)
		}
	}
	add("endpoint", d.Endpoint)
	add("datastore", d.Datastore)
	add("region", d.Region)
	add("bucket", d.Bucket)
	for _, o := range placeOptions() {
		add(o, d.Options[o])
	}
	return strings.Join(words, ", ")
}

// fitsArch refuses images for arm64 where the template that is made is an x86 machine.
func fitsArch(d destination, arch string) error {
	if arch != "arm64" {
		return nil
	}
	switch d.Type {
	case "opennebula", "libvirt", "proxmox", "vsphere", "vsphere-library", "digitalocean", "hetzner":
		return usageError{fmt.Errorf("upload target %s: the images are for arm64, and what type %s makes of them is an x86 machine, which would not start; upload to a bucket or a registry and make the machine by hand", d.Name, d.Type)}
	}
	return nil
}

// destination finds a target by its name in cluster.yaml.
func (g *globals) destination(name string) (destination, error) {
	spec, err := g.spec()
	if err != nil {
		return destination{}, err
	}
	var names []string
	for _, u := range spec.Uploads {
		if u.Name == name {
			return destination{Upload: u}, nil
		}
		names = append(names, u.Name)
	}
	if len(names) == 0 {
		return destination{}, usageError{fmt.Errorf("%s has no upload: section, which names the platforms (docs/upload.md)", g.file)}
	}
	return destination{}, usageError{fmt.Errorf("%s names no upload target %q; it has %s", g.file, name, strings.Join(names, ", "))}
}

// stageFlags say where a platform that fetches images can fetch them here, and how
// long one that fetches them elsewhere may take.
type stageFlags struct {
	listen, advertise string
	life              time.Duration
}

func (s *stageFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.listen, "listen", ":0", "where a platform that fetches images fetches them: address and port of this machine, port 0 for any")
	cmd.Flags().StringVar(&s.advertise, "advertise", "", "the URL that the platform reaches --listen by (default this machine's address on the way to the platform)")
}

// target makes the target of a destination. Without stageFlags nothing can be
// fetched here, and so nothing be uploaded. stop ends what it needed.
func (g *globals) target(ctx context.Context, d destination, s *stageFlags) (t upload.Target, stop func(), err error) {
	switch d.Type {
	case "opennebula":
		return g.openNebula(ctx, d, s)
	case "vsphere":
		return g.vSphere(ctx, d)
	case "vsphere-library":
		return g.vSphereLibrary(ctx, d)
	case "openstack":
		return g.openStack(ctx, d, s)
	case "digitalocean":
		return g.digitalOcean(ctx, d, s)
	case "hetzner":
		t, err = g.hetzner(d)
		return t, func() {}, err
	case "proxmox":
		return g.proxmox(ctx, d, s)
	case "ssh":
		return nil, nil, usageError{fmt.Errorf("upload target %s: a host is no platform: option stage of others names it (docs/upload.md)", d.Name)}
	}
	t, err = g.push(d)
	return t, func() {}, err
}

// uploadSecret reads the password of a destination, without a line's end after it.
func (g *globals) uploadSecret(d destination) (string, error) {
	b, err := g.signingSecret(d.Password)
	if err != nil {
		return "", usageError{fmt.Errorf("reading the password of upload target %s: %w", d.Name, err)}
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return "", usageError{fmt.Errorf("reading the password of upload target %s: it is empty", d.Name)}
	}
	return text, nil
}

func (g *globals) openNebula(ctx context.Context, d destination, s *stageFlags) (upload.Target, func(), error) {
	password, err := g.uploadSecret(d)
	if err != nil {
		return nil, nil, err
	}
	client, err := g.uploadClient(d)
	if err != nil {
		return nil, nil, err
	}
	machine, err := g.openNebulaMachine(d)
	if err != nil {
		return nil, nil, err
	}
	conf := opennebula.Config{
		Endpoint: d.Endpoint, Session: d.Username + ":" + password, Datastore: d.Datastore, Group: d.Options["group"],
		Machine: machine, Client: client, Wait: pause,
	}
	source, stop, err := g.source(ctx, d, s, place{direct: d.Options["frontendDirectory"], towards: d.Endpoint, path: true})
	if err != nil {
		return nil, nil, err
	}
	conf.Source = source
	return opennebula.New(conf), stop, nil
}

func (g *globals) openNebulaMachine(d destination) (opennebula.Machine, error) {
	m := opennebula.Machine{CPU: d.Options["cpu"], Network: d.Options["network"], Firmware: d.Options["firmware"], Bus: d.Options["bus"]}
	if _, err := strconv.ParseFloat(m.CPU, 64); m.CPU != "" && err != nil {
		return m, badDestination(d, fmt.Errorf("option cpu %q is no number", m.CPU))
	}
	if m.Bus != "" && m.Bus != "sd" && m.Bus != "vd" {
		return m, badDestination(d, fmt.Errorf("option bus %q is neither sd nor vd", m.Bus))
	}
	if err := d.counts(map[string]*int{"vcpu": &m.VCPU, "memoryMB": &m.MemoryMB, "diskMB": &m.DiskMB}); err != nil {
		return m, err
	}
	var err error
	m.Node, err = g.uploadNode(d)
	return m, err
}

// pause is between two questions about something that is under way.
func pause(ctx context.Context) error { return passTime(ctx, time.Second) }

func passTime(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
