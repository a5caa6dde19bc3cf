package libvirt

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"github.com/imagectl/imagectl/images/upload"
)

// leftVolume is the only thing that a broken upload leaves: a volume that no domain
// of ours has.
const leftVolume = "volume"

// known is a domain of ours.
type known struct {
	domain libvirt.Domain
	xml    libvirtxml.Domain
	metadata
}

// find looks for a domain by its name; k is nil if there is none. One that is not
// ours is refused.
func (s *session) find(name, kind string) (k *known, err error) {
	d, err := s.DomainLookupByName(name)
	if none(err, libvirt.ErrNoDomain) {
		return nil, nil
	}
	if err != nil {
		return nil, failed(s.ctx, "looking for the domain "+name, err)
	}
	k, is, err := s.read(d)
	if err != nil || k == nil {
		return nil, err
	}
	if !is || k.Kind != kind {
		return nil, fmt.Errorf("looking for the domain %s: %w: it was not made by imagectl, or for something else; give the image another name", name, upload.ErrTaken)
	}
	return k, nil
}

// read reads a domain as it is defined; nil if it is gone.
func (s *session) read(d libvirt.Domain) (k *known, is bool, err error) {
	text, err := s.DomainGetXMLDesc(d, libvirt.DomainXMLInactive)
	if none(err, libvirt.ErrNoDomain) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, failed(s.ctx, "reading the domain "+d.Name, err)
	}
	k = &known{domain: d}
	if err := k.xml.Unmarshal(text); err != nil {
		return nil, false, fmt.Errorf("reading the domain %s: %w", d.Name, err)
	}
	if k.metadata, is, err = ours(k.xml.Metadata); err != nil {
		return nil, false, fmt.Errorf("reading the metadata of the domain %s: %w", d.Name, err)
	}
	return k, is, nil
}

// look finds the version of an image. whole says that its volume is there, too.
func (s *session) look(img upload.Image) (k *known, whole bool, err error) {
	name := versionName(img.Name, img.Version)
	if k, err = s.find(name, kindVersion); err != nil || k == nil {
		return nil, false, err
	}
	if k.Pool != s.pool.Name {
		return nil, false, fmt.Errorf("looking for the domain %s: %w: its volume is in the pool %s, and the pool %s is wanted: a family lives in one pool of a host; give the other that name again, or delete the version", name, upload.ErrTaken, k.Pool, s.pool.Name)
	}
	if k.Digest != img.Digest {
		return nil, false, fmt.Errorf("looking for the domain %s: %w: it is there with the digest %s, and this disk has %s; a version never changes", name, upload.ErrTaken, k.Digest, img.Digest)
	}
	_, err = s.StorageVolLookupByName(s.pool, k.Volume)
	if none(err, libvirt.ErrNoStorageVol) {
		return k, false, nil
	}
	return k, err == nil, failed(s.ctx, "looking for the volume "+k.Volume, err)
}

// point says what the template says of an object.
func (s *session) point(o *upload.Object) error {
	k, err := s.find(o.Name, kindTemplate)
	if err != nil || k == nil {
		return err
	}
	o.Current, o.Previous = k.Version == o.Version, k.metadata.Previous == o.Version
	return nil
}

// Preflight looks for the pool, its space, and what is there.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if err := checkNames(img); err != nil {
		return upload.Plan{}, err
	}
	s, done, err := t.open(ctx)
	if err != nil {
		return upload.Plan{}, err
	}
	defer done()
	k, whole, err := s.look(img)
	if err != nil {
		return upload.Plan{}, err
	}
	if whole {
		o := k.object()
		return upload.Plan{Found: &o}, s.point(&o)
	}
	// It could not be promoted.
	if _, err := s.find(img.Name, kindTemplate); err != nil {
		return upload.Plan{}, err
	}
	bytes, err := toSend(img)
	if err != nil {
		return upload.Plan{}, err
	}
	state, _, _, free, err := s.StoragePoolGetInfo(s.pool)
	switch {
	case err != nil:
		return upload.Plan{}, failed(ctx, "asking for the space of the pool "+t.Pool, err)
	case libvirt.StoragePoolState(state) != libvirt.StoragePoolRunning:
		return upload.Plan{}, fmt.Errorf("looking at the pool %s: %w: it is not active; virsh pool-start %s", t.Pool, upload.ErrServer, t.Pool)
	case free < uint64(bytes):
		return upload.Plan{}, fmt.Errorf("looking at the pool %s: %w: it has %d bytes left, and the image has %d", t.Pool, upload.ErrSpace, free, bytes)
	}
	return upload.Plan{Bytes: bytes, Steps: []string{
		fmt.Sprintf("make a volume of %d bytes in the pool %s", img.RawSize, t.Pool),
		fmt.Sprintf("send %d bytes of %s", bytes, img.Format),
		"define the domain " + versionName(img.Name, img.Version) + ", shut off",
	}}, nil
}

// Upload sends the file to a new volume and then defines the domain, which makes
// the version exist.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	if err := checkNames(img); err != nil {
		return upload.Object{}, err
	}
	s, done, err := t.open(ctx)
	if err != nil {
		return upload.Object{}, err
	}
	defer done()
	for _, l := range j.Left() {
		if err := s.clean(l); err != nil {
			return upload.Object{}, err
		}
		if err := j.Forget(l); err != nil {
			return upload.Object{}, err
		}
	}
	k, whole, err := s.look(img)
	if err != nil {
		return upload.Object{}, err
	}
	if k != nil && !whole {
		ev(upload.Event{Phase: "sending", Note: fmt.Sprintf("the domain %s is there without its volume %s: making it anew", k.xml.Name, k.Volume)})
		if err := s.undefine(k); err != nil {
			return upload.Object{}, err
		}
	}
	if !whole {
		if k, err = t.send(s, img, j, ev); err != nil {
			return upload.Object{}, err
		}
	}
	o := k.object()
	return o, s.point(&o)
}

func (t *Target) send(s *session, img upload.Image, j upload.Journal, ev upload.Events) (*known, error) {
	var random [20]byte
	if _, err := io.ReadFull(t.Random, random[:]); err != nil {
		return nil, fmt.Errorf("making a name for a volume: %w", err)
	}
	id, err := uuid.FromBytes(random[:16])
	if err != nil {
		return nil, fmt.Errorf("making a UUID: %w", err)
	}
	// A random UUID by RFC 9562, 5.4.
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	name := fmt.Sprintf("%s.%s.%s", versionName(img.Name, img.Version), hex.EncodeToString(random[16:]), img.Format)
	text, err := volume(name, img.Format, img.RawSize)
	if err != nil {
		return nil, err
	}
	left := upload.Leftover{Kind: leftVolume, Name: name}
	if err := j.Write(left); err != nil {
		return nil, err
	}
	vol, err := s.StorageVolCreateXML(s.pool, text, 0)
	if err != nil {
		return nil, failed(s.ctx, "making the volume "+name, err)
	}
	if err := s.fill(vol, img, ev); err != nil {
		return nil, err
	}
	if err := s.prove(vol, img, ev); err != nil {
		return nil, err
	}
	if text, err = t.domain(t.metadata(img, name), id.String()); err != nil {
		return nil, err
	}
	_, refused := s.DomainDefineXMLFlags(text, libvirt.DomainDefineValidate)
	k, whole, err := s.look(img)
	switch {
	case err != nil:
		return nil, err
	case k == nil || !whole:
		if refused == nil {
			return nil, fmt.Errorf("reading the domain %s again: %w: it is gone", versionName(img.Name, img.Version), upload.ErrServer)
		}
		return nil, failed(s.ctx, "defining the domain "+versionName(img.Name, img.Version), refused)
	case k.Volume != name:
		// Another upload was quicker.
		if err := s.clean(left); err != nil {
			return nil, err
		}
	}
	return k, j.Forget(left)
}
