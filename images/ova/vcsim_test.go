package ova_test

import (
	"context"
	"crypto/sha1"
	"fmt"
	"testing"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf/importer"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"

	"github.com/imagectl/imagectl/images/ova"
)

// The simulator keeps only the size and the SHA-1 of what it is sent, and takes no
// notice of the firmware.
func TestSimulatedVCenterImportsTheArchive(t *testing.T) {
	t.Parallel()
	content, _ := disk(t)
	path := file(t, ova.Machine{Name: "demo-worker", CPUs: 4, MemoryMiB: 8192}, content)
	simulator.Test(func(ctx context.Context, c *vim25.Client) {
		finder := find.NewFinder(c)
		dc, err := finder.DefaultDatacenter(ctx)
		if err != nil {
			t.Fatal(err)
		}
		finder.SetDatacenter(dc)
		store, err := finder.DefaultDatastore(ctx)
		if err != nil {
			t.Fatal(err)
		}
		pool, err := finder.ResourcePool(ctx, "DC0_C0/Resources")
		if err != nil {
			t.Fatal(err)
		}
		host, err := finder.HostSystem(ctx, "DC0_C0_H0")
		if err != nil {
			t.Fatal(err)
		}
		folders, err := dc.Folders(ctx)
		if err != nil {
			t.Fatal(err)
		}
		imp := importer.Importer{
			Client: c, Finder: finder, Datacenter: dc, Datastore: store, ResourcePool: pool, Host: host, Folder: folders.VmFolder,
			Archive: &importer.TapeArchive{Path: path, Opener: importer.Opener{Client: c}},
			Log:     func(string) (int, error) { return 0, nil },
		}
		info, lease, err := imp.ImportVApp(ctx, "*.ovf", importer.Options{
			NetworkMapping: []importer.Network{{Name: "VM Network", Network: "VM Network"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range info.Items {
			if err := imp.Upload(ctx, lease, item); err != nil {
				t.Fatal(err)
			}
		}
		uploaded, err := lease.GetManifest(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := lease.Complete(ctx); err != nil {
			t.Fatal(err)
		}
		if sum := fmt.Sprintf("%x", sha1.Sum(content)); len(uploaded) != 1 || uploaded[0].Sha1 != sum || uploaded[0].Size != int64(len(content)) {
			t.Errorf("uploaded were %+v, want one disk of %d bytes with SHA-1 %s", uploaded, len(content), sum)
		}
		vm := object.NewVirtualMachine(c, info.Entity)
		var got mo.VirtualMachine
		if err := vm.Properties(ctx, vm.Reference(), []string{"config.hardware", "name"}, &got); err != nil {
			t.Fatal(err)
		}
		if got.Name != "demo-worker" || got.Config.Hardware.NumCPU != 4 || got.Config.Hardware.MemoryMB != 8192 {
			t.Errorf("got machine %q with %d CPUs and %d MB", got.Name, got.Config.Hardware.NumCPU, got.Config.Hardware.MemoryMB)
		}
	})
}
