package libvirt

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"libvirt.org/go/libvirtxml"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// nodeKey is where the agent looks for its server (bootstrap/platform).
const nodeKey = "opt/org.imagectl/node"

// Kinds of domains that are ours.
const (
	kindVersion  = "version"
	kindTemplate = "template"
)

const namespace = "urn:imagectl:image:1"

// metadata is the element of ours in a domain's metadata.
type metadata struct {
	XMLName xml.Name `xml:"urn:imagectl:image:1 image"`
	Kind    string   `xml:"kind,attr"`
	Name    string   `xml:"name,attr"`
	Version string   `xml:"version,attr"`
	Digest  string   `xml:"digest,attr"`
	// Previous is the version that the template was before.
	Previous string `xml:"previous,attr,omitempty"`
	// Settings is a digest of what the options made of the template.
	Settings string       `xml:"settings,attr,omitempty"`
	Format   store.Format `xml:"format,attr"`
	Size     int64        `xml:"size,attr"`
	SHA256   string       `xml:"sha256,attr"`
	Pool     string       `xml:"pool,attr"`
	Volume   string       `xml:"volume,attr"`
	Uploaded string       `xml:"uploaded,attr"`
	Labels   []label      `xml:"label"`
}

type label struct {
	Key   string `xml:"key,attr"`
	Value string `xml:"value,attr"`
}

func (t *Target) metadata(img upload.Image, volume string) metadata {
	m := metadata{
		Kind: kindVersion, Name: img.Name, Version: img.Version, Digest: img.Digest,
		Format: img.Format, Size: img.Size, SHA256: img.SHA256, Pool: t.Pool, Volume: volume,
		Uploaded: t.Now().UTC().Format(time.RFC3339Nano),
	}
	audit := img.Audit()
	for _, k := range slices.Sorted(maps.Keys(audit)) {
		m.Labels = append(m.Labels, label{k, audit[k]})
	}
	return m
}

func (m metadata) encode() (*libvirtxml.DomainMetadata, error) {
	b, err := xml.Marshal(m)
	return &libvirtxml.DomainMetadata{XML: string(b)}, err
}

// ours finds our element among those of others.
func ours(d *libvirtxml.DomainMetadata) (m metadata, found bool, err error) {
	if d == nil {
		return m, false, nil
	}
	for in := xml.NewDecoder(strings.NewReader(d.XML)); ; {
		token, err := in.Token()
		if errors.Is(err, io.EOF) {
			return m, false, nil
		}
		if err != nil {
			return m, false, err
		}
		start, is := token.(xml.StartElement)
		if !is {
			continue
		}
		if start.Name.Space == namespace && start.Name.Local == "image" {
			return m, true, in.DecodeElement(&m, &start)
		}
		if err := in.Skip(); err != nil {
			return m, false, err
		}
	}
}

func (m metadata) object() upload.Object {
	at, _ := time.Parse(time.RFC3339Nano, m.Uploaded)
	return upload.Object{ID: versionName(m.Name, m.Version), Name: m.Name, Version: m.Version, Digest: m.Digest, Created: at, State: "shut off"}
}

// domain is the machine that a version describes.
func (t *Target) domain(m metadata, id string) (string, error) {
	return t.describe(versionName(m.Name, m.Version), m, id)
}

// template is the family's stable domain that starts a version. id is its own. It is
// made of the options of now, and not of the version's domain, which has those of its
// upload.
func (t *Target) template(version metadata, id, previous string) (string, error) {
	version.Kind, version.Previous = kindTemplate, previous
	var err error
	if version.Settings, err = t.settings(); err != nil {
		return "", err
	}
	return t.describe(version.Name, version, id)
}

// settings is a digest of all that the options say of a machine. libvirt adds to what it
// is given, so that texts cannot be compared.
func (t *Target) settings() (string, error) {
	text, err := t.describe("", metadata{}, "")
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8]), err
}

func (t *Target) describe(name string, m metadata, id string) (string, error) {
	about, err := m.encode()
	if err != nil {
		return "", fmt.Errorf("describing the template: %w", err)
	}
	on := &libvirtxml.DomainFeature{}
	d := libvirtxml.Domain{
		Type: "kvm", Name: name, UUID: id,
		Title: m.Name + " " + m.Version, Metadata: about,
		Memory: &libvirtxml.DomainMemory{Value: uint(t.Memory), Unit: "MiB"},
		VCPU:   &libvirtxml.DomainVCPU{Value: uint(t.CPUs)},
		OS: &libvirtxml.DomainOS{
			Type:        &libvirtxml.DomainOSType{Arch: "x86_64", Machine: "q35", Type: "hvm"},
			BootDevices: []libvirtxml.DomainBootDevice{{Dev: "hd"}},
		},
		Features: &libvirtxml.DomainFeatureList{ACPI: on},
		// Not the host's own: machines move between hosts.
		CPU: &libvirtxml.DomainCPU{Mode: "host-model"},
		Devices: &libvirtxml.DomainDeviceList{
			Disks: []libvirtxml.DomainDisk{{
				Device: "disk",
				Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: string(m.Format), Discard: "unmap"},
				Source: &libvirtxml.DomainDiskSource{Volume: &libvirtxml.DomainDiskSourceVolume{Pool: t.Pool, Volume: m.Volume}},
				Target: &libvirtxml.DomainDiskTarget{Dev: "vda", Bus: "virtio"},
				// Nobody starts a template and clones what it has made of itself.
				ReadOnly: &libvirtxml.DomainDiskReadOnly{},
			}},
			Interfaces: []libvirtxml.DomainInterface{t.card()},
			Serials:    []libvirtxml.DomainSerial{{Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}}},
			RNGs: []libvirtxml.DomainRNG{{Model: "virtio", Backend: &libvirtxml.DomainRNGBackend{
				Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}}}},
		},
	}
	if t.Emulate {
		d.Type, d.CPU.Mode = "qemu", "maximum"
	}
	if t.Firmware == UEFI {
		d.OS.Firmware = "efi"
		d.OS.FirmwareInfo = &libvirtxml.DomainOSFirmwareInfo{Features: []libvirtxml.DomainOSFirmwareFeature{{Enabled: "no", Name: "secure-boot"}}}
	}
	if t.Node != "" {
		d.SysInfo = []libvirtxml.DomainSysInfo{{FWCfg: &libvirtxml.DomainSysInfoFWCfg{Entry: []libvirtxml.DomainSysInfoEntry{
			{Name: nodeKey, Value: base64.StdEncoding.EncodeToString([]byte(t.Node))}}}}}
	}
	text, err := d.Marshal()
	if err != nil {
		return "", fmt.Errorf("describing the template: %w", err)
	}
	return text, nil
}

func (t *Target) card() libvirtxml.DomainInterface {
	card := libvirtxml.DomainInterface{Model: &libvirtxml.DomainInterfaceModel{Type: "virtio"}, Source: &libvirtxml.DomainInterfaceSource{}}
	switch {
	case t.Network != "":
		card.Source.Network = &libvirtxml.DomainInterfaceSourceNetwork{Network: t.Network}
	case t.Bridge != "":
		card.Source.Bridge = &libvirtxml.DomainInterfaceSourceBridge{Bridge: t.Bridge}
	default:
		card.Source.User = &libvirtxml.DomainInterfaceSourceUser{}
	}
	return card
}

// volume is a file of a size in the pool.
func volume(name string, f store.Format, capacity int64) (string, error) {
	v := libvirtxml.StorageVolume{
		Name:       name,
		Capacity:   &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: uint64(capacity)},
		Allocation: &libvirtxml.StorageVolumeSize{Unit: "bytes"},
		Target:     &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: string(f)}},
	}
	text, err := v.Marshal()
	if err != nil {
		return "", fmt.Errorf("describing the volume %s: %w", name, err)
	}
	return text, nil
}
