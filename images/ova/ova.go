// Package ova writes an OVA: a tar archive of an OVF descriptor (DMTF DSP0243,
// the 1.x envelope that every vSphere reads), a manifest of digests and one disk,
// in this order. The machine it describes is the one of Flatcar's own OVA (hardware
// version 13, so ESXi 6.5 and later; paravirtual SCSI; VMXNET3; the guestinfo
// properties that Ignition and Afterburn read) with these differences: EFI instead
// of BIOS, SHA-256 instead of SHA-1 in the manifest (vSphere 8 refuses SHA-1), no
// properties of coreos-cloudinit, which is masked here, no drives that a server has
// no use for, and a property that says which server the machine belongs to. The
// machine has no VMware tools to read that with, so it comes on a CD as well (OVF's
// transport "iso"; bootstrap/platform).
//
// The bytes follow from the arguments alone. Signing is not this package's job.
package ova

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/xml"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/template"
	"time"
)

// Machine is the virtual machine that an import makes.
type Machine struct {
	// Name of the machine, and of the archive's members without their suffix: 1
	// to 80 letters, digits, dots, underscores and minus signs.
	Name string
	// Version of Flatcar, for people to see.
	Version string
	// CPUs is 2 when zero, the least that kubeadm takes.
	CPUs int
	// MemoryMiB is 4096 when zero.
	MemoryMiB int
}

// Disk is a streamOptimized VMDK.
type Disk struct {
	Content io.Reader
	// Size of Content, in bytes.
	Size int64
	// SHA256 of Content, lower-case hexadecimal.
	SHA256 string
	// Capacity of the disk that it makes, in bytes.
	Capacity int64
}

// maxSize is what a member's size field holds in a ustar archive: VMware's tools
// read no other kind.
const maxSize = 1<<33 - 1

// A name is the stem of file names and part of a URL reference without escapes.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,80}$`)

//go:embed envelope.ovf.tmpl
var envelopeText string

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Write writes the archive to w. All members get modTime, in whole seconds.
func Write(ctx context.Context, w io.Writer, m Machine, d Disk, modTime time.Time) error {
	m = m.complete()
	if err := check(m, d); err != nil {
		return fmt.Errorf("writing OVA %q: %w", m.Name, err)
	}
	if d.Size > maxSize {
		return fmt.Errorf("writing OVA %q: the compressed disk has %d bytes, this kind of archive holds %d; import the VMDK by itself", m.Name, d.Size, int64(maxSize))
	}
	if err := write(ctx, w, m, d, modTime); err != nil {
		return fmt.Errorf("writing OVA %s: %w", m.Name, err)
	}
	return nil
}

func check(m Machine, d Disk) error {
	switch {
	case !nameForm.MatchString(m.Name):
		return fmt.Errorf("a name has 1 to 80 letters, digits, dots, underscores and minus signs")
	case m.CPUs < 0 || m.MemoryMiB < 0 || m.MemoryMiB%4 != 0:
		return fmt.Errorf("a machine cannot have %d CPUs and %d MiB of memory; vSphere takes multiples of 4 MiB", m.CPUs, m.MemoryMiB)
	case !digestForm.MatchString(d.SHA256):
		return fmt.Errorf("the disk's digest %q is malformed", d.SHA256)
	case d.Size <= 0 || d.Capacity <= 0:
		return fmt.Errorf("a disk of %d bytes cannot come from a file of %d", d.Capacity, d.Size)
	}
	return nil
}

// Descriptor is the OVF of a machine whose disk is in the file diskFile, for a VMDK
// that is imported without an archive. Zero CPUs and memory are as in Write, and
// nothing is read of the disk's Content.
func Descriptor(m Machine, d Disk, diskFile string) ([]byte, error) {
	m = m.complete()
	if err := check(m, d); err != nil {
		return nil, fmt.Errorf("describing %q in OVF: %w", m.Name, err)
	}
	text, err := envelope(m, d, diskFile)
	if err != nil {
		return nil, fmt.Errorf("describing %s in OVF: %w", m.Name, err)
	}
	return text, nil
}

// complete sets what is zero.
func (m Machine) complete() Machine {
	m.CPUs, m.MemoryMiB = cmp.Or(m.CPUs, 2), cmp.Or(m.MemoryMiB, 4096)
	return m
}

func write(ctx context.Context, w io.Writer, m Machine, d Disk, modTime time.Time) error {
	diskFile := m.Name + "-disk1.vmdk"
	envelope, err := envelope(m, d, diskFile)
	if err != nil {
		return err
	}
	manifest := fmt.Sprintf("SHA256(%s.ovf)= %x\nSHA256(%s)= %s\n", m.Name, sha256.Sum256(envelope), diskFile, d.SHA256)
	t := tar.NewWriter(w)
	for _, member := range []struct {
		name    string
		size    int64
		content io.Reader
	}{
		{m.Name + ".ovf", int64(len(envelope)), bytes.NewReader(envelope)},
		{m.Name + ".mf", int64(len(manifest)), strings.NewReader(manifest)},
		{diskFile, d.Size, d.Content},
	} {
		err := t.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: member.name, Size: member.size, Mode: 0o644,
			ModTime: modTime.Truncate(time.Second), Format: tar.FormatUSTAR,
		})
		if err != nil {
			return err
		}
		if err := copyAll(ctx, t, member.content, member.size); err != nil {
			return fmt.Errorf("adding %s: %w", member.name, err)
		}
	}
	return t.Close()
}

// copyAll copies size bytes, in pieces, so that a cancelled context is noticed.
func copyAll(ctx context.Context, w io.Writer, r io.Reader, size int64) error {
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(w, r, min(left, 16<<20))
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", size-left+n, size, err)
		}
		left -= n
	}
	return nil
}

func envelope(m Machine, d Disk, diskFile string) ([]byte, error) {
	var version strings.Builder
	if err := xml.EscapeText(&version, []byte(m.Version)); err != nil {
		return nil, err
	}
	m.Version = version.String()
	t, err := template.New("envelope").Parse(envelopeText)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, struct {
		Machine  Machine
		Disk     Disk
		DiskFile string
	}{m, d, diskFile}); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
