package build

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"strings"

	"github.com/imagectl/imagectl/images/ova"
	"github.com/imagectl/imagectl/images/vmdk"
)

// setOVA is a virtual machine for vSphere.
const setOVA Set = "ova"

func streamVMDK(ctx context.Context, dst *os.File, img image) error {
	return vmdk.Write(ctx, dst, img.file, img.size, vmdk.Options{ContentID: img.uuid})
}

// virtualAppliance makes the VMDK first: its size and digest come before it in
// the archive.
func virtualAppliance(ctx context.Context, dst *os.File, img image) error {
	tmp, err := scratch(dst)
	if err != nil {
		return err
	}
	defer tmp.Close()
	sum := sha256.New()
	if err := vmdk.Write(ctx, io.MultiWriter(tmp, sum), img.file, img.size, vmdk.Options{ContentID: img.uuid}); err != nil {
		return err
	}
	size, err := tmp.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return ova.Write(ctx, dst, ova.Machine{Name: machineName(img.name), Version: img.flatcar}, ova.Disk{
		Content: tmp, Size: size, SHA256: hexSum(sum), Capacity: vmdk.Capacity(img.size),
	}, img.modTime)
}

// machineName is what vSphere takes for a name that people see: at most 80
// characters, and none that a URL would escape.
func machineName(name string) string {
	name = strings.ReplaceAll(name, "+", "-")
	return name[:min(len(name), 80)]
}
