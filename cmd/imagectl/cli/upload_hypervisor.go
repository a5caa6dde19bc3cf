package cli

import (
	"context"
	"crypto/rand"
	"net/http"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/proxmox"
	"github.com/imagectl/imagectl/images/upload/vsphere"
)

// proxmox sends, unless options say where Proxmox VE downloads from.
func (g *globals) proxmox(ctx context.Context, d destination, s *stageFlags) (upload.Target, func(), error) {
	secret, err := g.uploadSecret(d)
	if err != nil {
		return nil, nil, err
	}
	transport, err := g.pinnedTransport(d)
	if err != nil {
		return nil, nil, err
	}
	c := proxmox.Config{
		Endpoint: d.Endpoint, Token: d.Username, Secret: secret, Node: d.Options["host"], Datastore: d.Datastore, Import: d.Options["import"],
		Bridge: d.Options["bridge"], CPU: d.Options["cpu"], Firmware: proxmox.Firmware(d.Options["firmware"]), Medium: d.Options["medium"],
		Client: &http.Client{Transport: transport}, Random: rand.Reader, Now: time.Now, Wait: pause,
	}
	if err := d.counts(map[string]*int{"vcpu": &c.Cores, "memoryMB": &c.MemoryMB, "vlan": &c.VLAN, "vmid": &c.FirstID}); err != nil {
		return nil, nil, err
	}
	if c.NodeJSON, err = g.uploadNode(d); err != nil {
		return nil, nil, err
	}
	stop := func() {}
	if d.Options["stage"] != "" || d.Options["directory"] != "" {
		if c.Source, stop, err = g.source(ctx, d, s, place{direct: d.Options["directory"], towards: d.Endpoint}); err != nil {
			return nil, nil, err
		}
	}
	t, err := proxmox.New(c)
	if err != nil {
		stop()
		return nil, nil, badDestination(d, err)
	}
	return t, stop, nil
}

// leaseBeat is between two signs of life: a lease of vCenter's ends after five
// minutes without one.
const leaseBeat = 10 * time.Second

func (g *globals) vSphere(ctx context.Context, d destination) (upload.Target, func(), error) {
	password, err := g.uploadSecret(d)
	if err != nil {
		return nil, nil, err
	}
	transport, err := g.pinnedTransport(d)
	if err != nil {
		return nil, nil, err
	}
	c := vsphere.Config{
		Endpoint: d.Endpoint, Username: d.Username, Password: password, Datastore: d.Datastore,
		Datacenter: d.Options["datacenter"], Pool: d.Options["pool"], Host: d.Options["host"], Folder: d.Options["folder"],
		Network: d.Options["network"], Firmware: vsphere.Firmware(d.Options["firmware"]),
		Transport: transport, Trust: transport.Name, Random: rand.Reader, Now: time.Now,
		Wait: pause, Beat: func(ctx context.Context) error { return passTime(ctx, leaseBeat) },
	}
	if err := d.counts(map[string]*int{"vcpu": &c.CPUs, "memoryMB": &c.MemoryMB}); err != nil {
		return nil, nil, err
	}
	if c.Node, err = g.uploadNode(d); err != nil {
		return nil, nil, err
	}
	t, err := vsphere.New(c)
	if err != nil {
		return nil, nil, badDestination(d, err)
	}
	return t, func() { t.Close(ctx) }, nil
}

// vSphereLibrary is a content library, whose name is the datastore's.
func (g *globals) vSphereLibrary(ctx context.Context, d destination) (upload.Target, func(), error) {
	password, err := g.uploadSecret(d)
	if err != nil {
		return nil, nil, err
	}
	transport, err := g.pinnedTransport(d)
	if err != nil {
		return nil, nil, err
	}
	l, err := vsphere.NewLibrary(vsphere.LibraryConfig{
		Endpoint: d.Endpoint, Username: d.Username, Password: password, Name: d.Datastore,
		Transport: transport, Trust: transport.Name, Random: rand.Reader, Now: time.Now,
		Wait: pause, Beat: func(ctx context.Context) error { return passTime(ctx, leaseBeat) },
	})
	if err != nil {
		return nil, nil, badDestination(d, err)
	}
	return l, func() { l.Close(ctx) }, nil
}
