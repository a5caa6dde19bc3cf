package vsphere

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/imagectl/imagectl/images/ova"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/vmdk"
)

// source is what an import needs of a file.
type source struct {
	// descriptor is the OVF, which names the disk's file, diskName.
	descriptor, descriptorName, diskName string
	// offset and size of the VMDK in the file, in bytes.
	offset, size int64
}

// disk reads the VMDK.
func (s source) disk(img upload.Image) io.Reader {
	return io.NewSectionReader(img.File, s.offset, s.size)
}

// maxDescriptor bounds the OVF in an archive; ours have 8 KiB.
const maxDescriptor = 1 << 20

// newSource finds the disk, and describes it where no archive does.
func newSource(img upload.Image) (source, error) {
	if img.Format == store.OVA {
		return inArchive(img)
	}
	name := versionName(img.Name, img.Version)
	text, err := ova.Descriptor(ova.Machine{Name: name, Version: img.Version}, ova.Disk{
		Size: img.Size, SHA256: img.SHA256, Capacity: vmdk.Capacity(img.RawSize),
	}, name+".vmdk")
	return source{descriptor: string(text), descriptorName: name + ".ovf", diskName: name + ".vmdk", size: img.Size}, err
}

// inArchive finds the OVF and the VMDK of an OVA. The archive's own digests were
// compared with the manifest's before, as part of the file.
func inArchive(img upload.Image) (s source, err error) {
	fail := func(err error) (source, error) {
		return source{}, fmt.Errorf("reading the archive %s: %w", img.File.Name(), err)
	}
	file := io.NewSectionReader(img.File, 0, img.Size)
	for t := tar.NewReader(file); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fail(err)
		}
		switch {
		case strings.HasSuffix(h.Name, ".ovf") && s.descriptor == "":
			b, err := io.ReadAll(io.LimitReader(t, maxDescriptor))
			if err != nil {
				return fail(err)
			}
			s.descriptor, s.descriptorName = string(b), h.Name
		case strings.HasSuffix(h.Name, ".vmdk") && s.size == 0:
			// tar reads headers in whole blocks, so the file stands at the content.
			if s.offset, err = file.Seek(0, io.SeekCurrent); err != nil {
				return fail(err)
			}
			s.size, s.diskName = h.Size, h.Name
		}
	}
	if s.descriptor == "" || s.size == 0 {
		return fail(errors.New("it has no .ovf, or no .vmdk"))
	}
	return s, nil
}
