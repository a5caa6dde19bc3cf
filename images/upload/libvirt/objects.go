package libvirt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// domains reads every domain of ours.
func (s *session) domains() (mine []*known, err error) {
	all, _, err := s.ConnectListAllDomains(1, 0)
	if err != nil {
		return nil, failed(s.ctx, "listing domains", err)
	}
	for _, d := range all {
		k, is, err := s.read(d)
		if err != nil {
			return nil, err
		}
		if is {
			mine = append(mine, k)
		}
	}
	return mine, nil
}

// List reads the domains' metadata, and finds volumes that no domain has.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	s, done, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	mine, err := s.domains()
	if err != nil {
		return nil, err
	}
	templates := map[string]*known{}
	for _, k := range mine {
		if k.Kind == kindTemplate && k.xml.Name == k.Name {
			templates[k.Name] = k
		}
	}
	all, err := s.lost(mine, name, t.Now())
	if err != nil {
		return nil, err
	}
	for _, k := range mine {
		// A clone of a version has its metadata, and is none.
		if k.Kind != kindVersion || k.xml.Name != versionName(k.Name, k.Version) || k.Pool != t.Pool || name != "" && name != k.Name {
			continue
		}
		o := k.object()
		if at := templates[k.Name]; at != nil {
			o.Current, o.Previous = at.Version == k.Version, at.metadata.Previous == k.Version
		}
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b upload.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// Promote defines the template anew, of the version and the options of now, unless it
// is that already.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	s, done, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	k, err := s.find(versionName(o.Name, o.Version), kindVersion)
	if err != nil {
		return err
	}
	if k == nil || k.Digest != o.Digest {
		return fmt.Errorf("promoting %s: %w", o.ID, upload.ErrNotFound)
	}
	at, err := s.find(o.Name, kindTemplate)
	if err != nil {
		return err
	}
	// Two who promote the first one at once make the same domain.
	id, previous := uuid.NewSHA1(uuid.NameSpaceURL, []byte(namespace+":"+o.Name)).String(), ""
	if at != nil {
		if settings, err := t.settings(); err != nil || at.starts(k, settings) {
			return err
		}
		if id, previous = at.xml.UUID, at.Version; previous == o.Version {
			previous = at.metadata.Previous
		}
	}
	text, err := t.template(k.metadata, id, previous)
	if err != nil {
		return err
	}
	_, err = s.DomainDefineXMLFlags(text, libvirt.DomainDefineValidate)
	return failed(ctx, "defining the template "+o.Name, err)
}

// starts tells whether a template is what promoting a version would make of it.
func (k *known) starts(version *known, settings string) bool {
	return k.Version == version.Version && k.Volume == version.Volume && k.Settings == settings
}

// Stale implements upload.Templates.
func (t *Target) Stale(ctx context.Context, o upload.Object) (bool, error) {
	s, done, err := t.open(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	at, err := s.find(o.Name, kindTemplate)
	if err != nil || at == nil || at.Version != o.Version {
		return false, err
	}
	settings, err := t.settings()
	return at.Settings != settings, err
}

// Delete removes a version's volume and then its domain, so that what was cut off
// is found again.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	s, done, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	if volume, is := strings.CutPrefix(o.ID, volumePrefix); is {
		return s.deleteLost(volume, t.Now())
	}
	k, err := s.find(versionName(o.Name, o.Version), kindVersion)
	if err != nil {
		return err
	}
	if k == nil {
		return fmt.Errorf("deleting %s: %w", o.ID, upload.ErrNotFound)
	}
	vol, err := s.StorageVolLookupByName(s.pool, k.Volume)
	switch {
	case none(err, libvirt.ErrNoStorageVol):
	case err != nil:
		return failed(ctx, "looking for the volume "+k.Volume, err)
	default:
		if user, err := s.user(k, vol); err != nil {
			return err
		} else if user != "" {
			return fmt.Errorf("deleting %s: %w: %s has its volume", o.ID, upload.ErrInUse, user)
		}
		if err := s.remove(k.Volume); err != nil {
			return err
		}
	}
	return s.undefine(k)
}

// user finds what else needs a version's volume: a domain that has it, or whose
// disks lie on it, or a volume of any active pool that does. Overlays that libvirt
// does not know are not seen.
func (s *session) user(k *known, vol libvirt.StorageVol) (string, error) {
	path, err := s.StorageVolGetPath(vol)
	if err != nil {
		return "", failed(s.ctx, "looking at the volume "+vol.Name, err)
	}
	all, _, err := s.ConnectListAllDomains(1, 0)
	if err != nil {
		return "", failed(s.ctx, "listing domains", err)
	}
	for _, d := range all {
		// As it runs: that names the disks below its disks.
		text, err := s.DomainGetXMLDesc(d, 0)
		if none(err, libvirt.ErrNoDomain) || d.UUID == k.domain.UUID {
			continue
		}
		if err != nil {
			return "", failed(s.ctx, "reading the domain "+d.Name, err)
		}
		var x libvirtxml.Domain
		if err := x.Unmarshal(text); err != nil {
			return "", fmt.Errorf("reading the domain %s: %w", d.Name, err)
		}
		if uses(x, path, k.Pool, k.Volume) {
			return "the domain " + d.Name, nil
		}
	}
	pools, _, err := s.ConnectListAllStoragePools(1, libvirt.ConnectListStoragePoolsActive)
	if err != nil {
		return "", failed(s.ctx, "listing storage pools", err)
	}
	for _, p := range pools {
		volumes, _, err := s.StoragePoolListAllVolumes(p, 1, 0)
		if err != nil {
			return "", failed(s.ctx, "listing the volumes of "+p.Name, err)
		}
		for _, v := range volumes {
			text, err := s.StorageVolGetXMLDesc(v, 0)
			if none(err, libvirt.ErrNoStorageVol) {
				continue
			}
			if err != nil {
				return "", failed(s.ctx, "reading the volume "+v.Name, err)
			}
			var x libvirtxml.StorageVolume
			if err := x.Unmarshal(text); err != nil {
				return "", fmt.Errorf("reading the volume %s: %w", v.Name, err)
			}
			if x.BackingStore != nil && x.BackingStore.Path == path {
				return "the volume " + v.Name, nil
			}
		}
	}
	return "", nil
}

func uses(d libvirtxml.Domain, path, pool, volume string) bool {
	is := func(s *libvirtxml.DomainDiskSource) bool {
		return s != nil && (s.File != nil && s.File.File == path || s.Block != nil && s.Block.Dev == path ||
			s.Volume != nil && s.Volume.Pool == pool && s.Volume.Volume == volume)
	}
	if d.Devices == nil {
		return false
	}
	for _, disk := range d.Devices.Disks {
		if is(disk.Source) {
			return true
		}
		for b := disk.BackingStore; b != nil; b = b.BackingStore {
			if is(b.Source) {
				return true
			}
		}
	}
	return false
}

// undefine forgets a domain of ours, with the variables of its firmware.
func (s *session) undefine(k *known) error {
	err := s.DomainUndefineFlags(k.domain, libvirt.DomainUndefineNvram)
	if none(err, libvirt.ErrNoDomain) {
		return nil
	}
	return failed(s.ctx, "forgetting the domain "+k.xml.Name, err)
}

// remove deletes a volume of the pool; what is gone already is no error.
func (s *session) remove(volume string) error {
	vol, err := s.StorageVolLookupByName(s.pool, volume)
	if err == nil {
		err = s.StorageVolDelete(vol, 0)
	}
	if none(err, libvirt.ErrNoStorageVol) {
		return nil
	}
	return failed(s.ctx, "deleting the volume "+volume, err)
}

// Clean removes a volume that no domain of ours has.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	s, done, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	return s.clean(left)
}

func (s *session) clean(left upload.Leftover) error {
	if left.Kind != leftVolume || left.Name == "" {
		return fmt.Errorf("cleaning %s %q: libvirt has no such thing", left.Kind, left.Name)
	}
	mine, err := s.domains()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(mine, func(k *known) bool { return k.Pool == s.pool.Name && k.Volume == left.Name }) {
		return nil
	}
	return s.remove(left.Name)
}

// Verify compares the labels, and reads the whole volume back: libvirt keeps no
// digest.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	s, done, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	k, err := s.find(versionName(o.Name, o.Version), kindVersion)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, fmt.Errorf("verifying %s: %w", o.ID, upload.ErrNotFound)
	}
	checks := []upload.Check{
		upload.Compare("digest of the disk", k.Digest, img.Digest),
		upload.CompareLabels(func(key string) string { return labelOf(k.Labels, key) }, img),
		upload.CompareFile("sha256:"+k.SHA256, img),
	}
	vol, err := s.StorageVolLookupByName(s.pool, k.Volume)
	if none(err, libvirt.ErrNoStorageVol) {
		return append(checks, upload.Check{Name: "volume", Result: upload.Bad, Detail: k.Volume + " is gone"}), nil
	}
	if err != nil {
		return nil, failed(ctx, "looking for the volume "+k.Volume, err)
	}
	_, capacity, _, err := s.StorageVolGetInfo(vol)
	if err != nil {
		return nil, failed(ctx, "looking at the volume "+k.Volume, err)
	}
	checks = append(checks, upload.Compare("size of the disk", strconv.FormatUint(capacity, 10), strconv.FormatInt(img.RawSize, 10)))
	sum := sha256.New()
	if err := s.StorageVolDownload(vol, sum, 0, uint64(k.Size), 0); err != nil {
		return nil, failed(ctx, "reading the volume "+k.Volume, err)
	}
	return append(checks, readBack(k.metadata, hex.EncodeToString(sum.Sum(nil)), img)), nil
}

// readBack judges the digest of what is in a volume. Of a raw one that is the disk's,
// whichever file it was made of; of another one it is the file's.
func readBack(m metadata, sum string, img upload.Image) upload.Check {
	const name = "digest of the volume, read back"
	switch {
	case m.Format == store.Raw:
		return upload.Compare(name, sum, img.Digest)
	case m.SHA256 == img.SHA256 || sum != m.SHA256:
		return upload.Compare(name, sum, m.SHA256)
	}
	return upload.Check{Name: name, Result: upload.Unprovable, Detail: "the volume is as its metadata say, and they speak of another file than this one: " + sum}
}

func labelOf(all []label, key string) string {
	for _, l := range all {
		if l.Key == key {
			return l.Value
		}
	}
	return ""
}

var (
	_ upload.Target    = (*Target)(nil)
	_ upload.Templates = (*Target)(nil)
)
