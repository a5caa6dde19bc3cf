package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/imagectl/imagectl/images/extent"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/medium"
	"github.com/imagectl/imagectl/images/ova"
	"github.com/imagectl/imagectl/images/sysext"
	"github.com/imagectl/imagectl/images/vmdk"
)

// Jobs of more than one step, as images/build does them.

func installStream(ctx context.Context, dst io.Writer, src *os.File, size int64) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(extent.Write(ctx, w, src, size)) }()
	defer r.Close()
	return extent.Compress(ctx, dst, r)
}

// appliance makes the VMDK first, whose size and digest an OVA says before it.
func appliance(ctx context.Context, dst, src *os.File, size int64, _ []string) error {
	tmp, err := os.Create(dst.Name() + ".vmdk")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	sum := sha256.New()
	if err := vmdk.Write(ctx, io.MultiWriter(tmp, sum), src, size, vmdk.Options{ContentID: [16]byte{4}}); err != nil {
		return err
	}
	length, err := tmp.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	disk := ova.Disk{Content: tmp, Size: length, SHA256: hex.EncodeToString(sum.Sum(nil)), Capacity: vmdk.Capacity(size)}
	return ova.Write(ctx, dst, ova.Machine{Name: "bench", Version: "1"}, disk, time.Unix(0, 0))
}

// installer makes the ISO image of the cpio src and a kernel. What BIOS boots it
// with has 100 KB and is left out.
func installer(_ context.Context, dst, src *os.File, _ int64, more []string) error {
	if len(more) != 1 {
		return fmt.Errorf("making an ISO image: one kernel is wanted, there are %q", more)
	}
	stub, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err != nil {
		return err
	}
	o := medium.Options{Name: "bench", Label: "BENCH", Arch: "amd64", Args: []string{"quiet"}, OEM: new(fstree.Tree), Stub: stub, ModTime: time.Unix(0, 0)}
	if err := o.OEM.AddFile("config.ign", 0o644, fstree.Bytes([]byte(`{"ignition":{"version":"3.4.0"}}`))); err != nil {
		return err
	}
	if o.Kernel, err = fstree.FromFile(more[0]); err != nil {
		return err
	}
	if o.Initrd, err = fstree.FromFile(src.Name()); err != nil {
		return err
	}
	content, err := medium.New(o)
	if err != nil {
		return err
	}
	r, err := content.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.MultiWriter(dst, sha256.New()), r)
	return err
}

// netboot makes what a machine loads and installs from: the disk's stream, copies
// of kernel and cpio, and the agent's extension, for which this program stands in.
func netboot(ctx context.Context, dst, src *os.File, size int64, more []string) error {
	if err := installStream(ctx, dst, src, size); err != nil {
		return err
	}
	for _, path := range more {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.MultiWriter(dst, sha256.New()), f)
		f.Close()
		if err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := fstree.FromFile(self)
	if err != nil {
		return err
	}
	agent, err := sysext.Agent(program)
	if err != nil {
		return err
	}
	tmp, err := os.Create(dst.Name() + ".raw")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	_, err = sysext.Write(tmp, agent, "amd64", time.Unix(0, 0))
	return err
}
