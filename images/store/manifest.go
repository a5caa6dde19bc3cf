package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/imagectl/imagectl/images/lock"
)

// ManifestName is the manifest's file name in the output directory.
const ManifestName = "manifest.json"

// Format says what an artefact is. A disk format may end in .gz, .xz or .zst,
// for the same file compressed; of Raw the last is called img.zst, since RawZstd
// is not what zstd makes of it.
type Format string

// The formats.
const (
	Raw       Format = "raw"        // a sparse disk image
	RawZstd   Format = "raw.zst"    // the same image as a compressed extent stream
	QCOW2     Format = "qcow2"      // the image with deflated clusters
	QCOW2Zstd Format = "zstd.qcow2" // the same with zstd, for QEMU 5.1 and newer
	VHD       Format = "vhd"        // fixed, whole MiB: for Azure and Hyper-V
	VMDK      Format = "vmdk"       // the image as streamOptimized VMDK
	OVA       Format = "ova"        // a virtual machine for vSphere
	PXEKernel Format = "pxe-kernel" // the locked, verified kernel
	PXEInitrd Format = "pxe-initrd" // the locked, verified cpio
	Sysext    Format = "sysext"     // a system extension, loaded by the installer
	Extension Format = "extension"  // a role's system extension, loaded by its diskless machines
	ISO       Format = "iso"        // the installer, bootable from CD and USB stick
	UKI       Format = "uki"        // the installer as one EFI program
	SPDX      Format = "spdx"       // the bill of materials of a role's image, or of the installer
	Ignition  Format = "ignition"   // config.ign as it is in a role's OEM partition
	GrubCfg   Format = "grub.cfg"   // grub.cfg as it is in a role's OEM partition
)

// Carries tells whether a file of this format is the system or a part of it,
// and not a document about it.
func (f Format) Carries() bool { return f != SPDX && f != Ignition && f != GrubCfg }

// Manifest lists what a build made. It holds no time and no host's name: equal
// inputs give equal manifests.
type Manifest struct {
	// Version of the format: 1.
	Version    int    `json:"version"`
	Cluster    string `json:"cluster"`
	Flatcar    string `json:"flatcar"`
	Kubernetes string `json:"kubernetes"`
	// Artefacts are sorted by Name.
	Artefacts []Artefact `json:"artefacts"`
}

// Artefact is one file next to the manifest.
type Artefact struct {
	// Name is the file's name, without a directory.
	Name string `json:"name"`
	// Role is empty for what every role shares.
	Role   string `json:"role,omitempty"`
	Format Format `json:"format"`
	// Extension is the name of a system extension, for Format Extension.
	Extension string `json:"extension,omitempty"`
	Size      int64  `json:"size"`
	// SHA256 of the file as it lies there, lower-case hexadecimal.
	SHA256 string `json:"sha256"`
	// RawSize is the size of the disk, for disks in any format.
	RawSize int64 `json:"rawSize,omitempty"`
	// RawSHA256 is the digest of the uncompressed extent stream (images/extent),
	// for disks: it names the disk's content whatever the format.
	RawSHA256 string `json:"rawSha256,omitempty"`
	// Inputs by digest, sorted by ID.
	Inputs []Input `json:"inputs"`
}

// Input is something that went into an artefact.
type Input struct {
	// ID is a lock.ID, or names what was rendered from cluster.yaml.
	ID     lock.ID `json:"id"`
	SHA256 string  `json:"sha256"`
}

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Find returns the artefact of a role in a format; role is "" for shared ones.
func (m Manifest) Find(role string, f Format) (Artefact, bool) {
	for _, a := range m.Artefacts {
		if a.Role == role && a.Format == f {
			return a, true
		}
	}
	return Artefact{}, false
}

// ReadManifest reads the manifest of an output directory. A missing one is
// fs.ErrNotExist.
func ReadManifest(dir string) (Manifest, error) {
	path := filepath.Join(dir, ManifestName)
	b, err := os.ReadFile(path)
	if err != nil {
		return Manifest{}, fmt.Errorf("reading manifest: %w", err)
	}
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("reading manifest %s: %w; run imagectl build to write it anew", path, err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, fmt.Errorf("reading manifest %s: %w; run imagectl build to write it anew", path, err)
	}
	return m, nil
}

// Encode returns what WriteManifest writes. It sorts m's artefacts.
func (m Manifest) Encode() ([]byte, error) {
	slices.SortFunc(m.Artefacts, func(a, b Artefact) int { return cmp.Compare(a.Name, b.Name) })
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("writing manifest: %w", err)
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing manifest: %w", err)
	}
	return append(b, '\n'), nil
}

// WriteManifest sorts and checks a manifest and replaces the one in dir in one
// step.
func WriteManifest(dir string, m Manifest) error {
	b, err := m.Encode()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, ManifestName)
	tmp := filepath.Join(dir, "."+ManifestName+".tmp")
	if err := writeSynced(tmp, b); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("writing manifest: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("writing manifest: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("writing manifest: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("writing manifest: %w", err)
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}

func (m Manifest) check() error {
	if m.Version != 1 {
		return fmt.Errorf("version is %d, this imagectl knows 1", m.Version)
	}
	if m.Cluster == "" {
		return errors.New("cluster is empty")
	}
	for i, a := range m.Artefacts {
		if a.Name == "" || a.Name != filepath.Base(a.Name) || a.Name == "." || a.Name == ".." {
			return fmt.Errorf("artefact name %q is no plain file name", a.Name)
		}
		if i > 0 && m.Artefacts[i-1].Name >= a.Name {
			return fmt.Errorf("artefact %q does not come after %q: artefacts must be sorted and unique", a.Name, m.Artefacts[i-1].Name)
		}
		if !digestForm.MatchString(a.SHA256) || (a.RawSHA256 != "" && !digestForm.MatchString(a.RawSHA256)) {
			return fmt.Errorf("artefact %q has a malformed digest", a.Name)
		}
		if a.Size < 0 || a.RawSize < 0 {
			return fmt.Errorf("artefact %q has size %d and raw size %d", a.Name, a.Size, a.RawSize)
		}
	}
	return nil
}
