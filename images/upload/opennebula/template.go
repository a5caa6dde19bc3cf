package opennebula

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// Machine is what a template says of its virtual machines. The zero value has one
// CPU, 2 GiB, a virtio-scsi disk of the image's size and BIOS, and no network.
type Machine struct {
	// CPU is the share of physical CPUs, 1 if it is empty; VCPU is what the guest
	// sees.
	CPU  string
	VCPU int
	// MemoryMB is 2048 if it is 0.
	MemoryMB int
	// DiskMB grows the disk; 0 leaves it as it is.
	DiskMB int
	// Network is the name or the number of a virtual network.
	Network string
	// Firmware is a path out of the hosts' OVMF_UEFIS; empty for BIOS.
	Firmware string
	// Bus is sd (virtio-scsi, as StorPool wants it) if it is empty, or vd (virtio-blk).
	Bus string
	// Node is node.json, which machines of the template enrol with; empty for none.
	Node []byte
}

// attributes is a template in OpenNebula's text form.
type attributes struct {
	b    strings.Builder
	errs []error
}

// set adds NAME="value".
func (a *attributes) set(name, value string) {
	fmt.Fprintf(&a.b, "%s=%s\n", name, a.quote(name, value))
}

// vector adds NAME=[ KEY="value", ... ]; pairs without a value are left out.
func (a *attributes) vector(name string, pairs ...[2]string) {
	var parts []string
	for _, p := range pairs {
		if p[1] != "" {
			parts = append(parts, p[0]+"="+a.quote(name+"/"+p[0], p[1]))
		}
	}
	fmt.Fprintf(&a.b, "%s=[ %s ]\n", name, strings.Join(parts, ", "))
}

// quote refuses what the text form has no sure way to write: what a backslash does
// before a quotation mark depends on the version.
func (a *attributes) quote(name, value string) string {
	if strings.ContainsFunc(value, func(r rune) bool { return r == '"' || r == '\\' || r < ' ' || r == 0x7f }) {
		a.errs = append(a.errs, fmt.Errorf("writing attribute %s: %q holds a quotation mark, a backslash or a control character", name, value))
	}
	return `"` + value + `"`
}

func (a *attributes) text() (string, error) { return a.b.String(), errors.Join(a.errs...) }

// audit adds the record of an image: IMAGECTL="1", IMAGECTL_NAME and so on.
func (a *attributes) audit(img upload.Image) {
	all := img.Audit()
	for _, k := range slices.Sorted(maps.Keys(all)) {
		// The attribute to search by is the plain digest.
		a.set(attributeOf(k), strings.TrimPrefix(all[k], "sha256:"))
	}
}

// attributeOf is the attribute of a label.
func attributeOf(label string) string {
	if label == upload.LabelOurs {
		return "IMAGECTL"
	}
	return "IMAGECTL_" + strings.ToUpper(strings.ReplaceAll(label, "-", "_"))
}

// imageTemplate is what one.image.allocate gets. mark tells this upload's image
// from another's.
func imageTemplate(img upload.Image, path, sha1, mark string) (string, error) {
	var a attributes
	a.set("NAME", imageName(img))
	a.set("PATH", path)
	a.set("TYPE", "OS")
	a.set("PERSISTENT", "NO")
	a.set("DEV_PREFIX", "sd")
	a.set("SHA1", sha1)
	a.set("DESCRIPTION", "Flatcar image "+img.Version+" of "+img.Name+", by imagectl")
	a.set("LABELS", "imagectl")
	a.audit(img)
	a.set("IMAGECTL_UPLOAD", mark)
	return a.text()
}

// machineTemplate is the VM template of a family, without what changes from image
// to image.
func machineTemplate(m Machine, family string, i image) (string, error) {
	var a attributes
	a.set("NAME", family)
	a.set("CPU", or(m.CPU, "1"))
	a.set("VCPU", strconv.Itoa(max(m.VCPU, 1)))
	memory := m.MemoryMB
	if memory == 0 {
		memory = 2048
	}
	a.set("MEMORY", strconv.Itoa(memory))
	secure := ""
	if m.Firmware != "" {
		secure = "NO"
	}
	a.vector("OS", [2]string{"ARCH", "x86_64"}, [2]string{"MACHINE", "q35"}, [2]string{"FIRMWARE", m.Firmware}, [2]string{"FIRMWARE_SECURE", secure})
	a.vector("FEATURES", [2]string{"ACPI", "yes"}, [2]string{"VIRTIO_SCSI_QUEUES", "auto"})
	size := ""
	if m.DiskMB > 0 {
		size = strconv.Itoa(m.DiskMB)
	}
	a.vector("DISK", [2]string{"IMAGE_ID", strconv.Itoa(i.ID)}, [2]string{"DEV_PREFIX", or(m.Bus, "sd")},
		[2]string{"CACHE", "none"}, [2]string{"DISCARD", "unmap"}, [2]string{"IO", "native"}, [2]string{"SIZE", size})
	if m.Network != "" {
		key := "NETWORK"
		if _, err := strconv.Atoi(m.Network); err == nil {
			key = "NETWORK_ID"
		}
		a.vector("NIC", [2]string{key, m.Network}, [2]string{"MODEL", "virtio"})
	}
	a.vector("GRAPHICS", [2]string{"TYPE", "VNC"}, [2]string{"LISTEN", "0.0.0.0"}, [2]string{"RANDOM_PASSWD", "YES"})
	a.vector("CONTEXT", context64(m.Node)...)
	a.set("LABELS", "imagectl")
	a.set("DESCRIPTION", "Flatcar nodes of "+family+", by imagectl: imagectl upload changes it, and undoes what others change")
	a.set("IMAGECTL", "1")
	a.set("IMAGECTL_NAME", family)
	a.set("IMAGECTL_VERSION", i.Template.Version)
	a.set("IMAGECTL_DIGEST", i.Template.Digest)
	return a.text()
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// Promote implements upload.Target: the template's disk becomes this image, and
// IMAGECTL_PREVIOUS is the one that it was.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	i, err := t.ourImage(ctx, "promoting", o.ID)
	if err != nil {
		return err
	}
	if i.stage() != finished {
		return fmt.Errorf("promoting image %d: %w: it is not finished but %s", i.ID, upload.ErrNotFound, i.state())
	}
	text, settings, err := t.wanted(i)
	if err != nil {
		return err
	}
	var a attributes
	a.set("IMAGECTL_SETTINGS", settings)
	old, err := t.family(ctx, i.Template.Family)
	if err != nil {
		return err
	}
	if old == nil {
		more, err := a.text()
		if err != nil {
			return err
		}
		_, err = t.call(ctx, "one.template.allocate", text+more)
		if err == nil {
			return nil
		}
		if errors.Is(err, upload.ErrTaken) {
			// Another upload may have been faster by a moment.
			old, _ = t.family(ctx, i.Template.Family)
		}
		if old == nil {
			return fmt.Errorf("making template %s: %w", i.Template.Family, err)
		}
	}
	if old.uses(i) && old.Template.Settings == settings {
		return nil
	}
	previous := old.Template.Previous
	if !old.uses(i) && len(old.Template.Disks) > 0 {
		previous = old.Template.Disks[0].ImageID
	}
	if previous != "" {
		a.set("IMAGECTL_PREVIOUS", previous)
	}
	more, err := a.text()
	if err != nil {
		return err
	}
	const replace = 0
	if _, err := t.call(ctx, "one.template.update", old.ID, text+more, replace); err != nil {
		return fmt.Errorf("changing template %s: %w", i.Template.Family, err)
	}
	return nil
}

// wanted is the template that starts an image, but for what it remembers, and a digest
// of it.
func (t *Target) wanted(i image) (text, settings string, err error) {
	text, err = machineTemplate(t.conf.Machine, i.Template.Family, i)
	sum := sha256.Sum256([]byte(text))
	return text, hex.EncodeToString(sum[:8]), err
}

// Stale implements upload.Templates.
func (t *Target) Stale(ctx context.Context, o upload.Object) (bool, error) {
	i, err := t.ourImage(ctx, "looking at", o.ID)
	if err != nil {
		return false, err
	}
	_, settings, err := t.wanted(i)
	if err != nil {
		return false, err
	}
	at, err := t.family(ctx, i.Template.Family)
	return err == nil && at != nil && at.Template.Settings != settings, err
}

// family finds the template of a family; nil when there is none.
func (t *Target) family(ctx context.Context, name string) (*template, error) {
	all, err := t.stable(ctx)
	if err != nil {
		return nil, err
	}
	var hits []template
	for _, tm := range all {
		if tm.Template.Family == name {
			hits = append(hits, tm)
		}
	}
	switch len(hits) {
	case 0:
		return nil, nil
	case 1:
		return &hits[0], nil
	}
	// A name is one user's once, so these are of two members of the group.
	return nil, fmt.Errorf("finding template %s: %w: %d of %s and %d of %s both say that they are it; delete one", name, upload.ErrTaken, hits[0].ID, hits[0].User, hits[1].ID, hits[1].User)
}
