package vsphere

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/vmdk"
)

// leftImport is the only thing that a broken upload leaves: a machine with a name
// of its own, perhaps a template already.
const leftImport = "import"

// markSize is the random part of that name, in bytes.
const markSize = 4

// Preflight implements upload.Target.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if err := checkNames(img); err != nil {
		return upload.Plan{}, err
	}
	s, err := t.open(ctx)
	if err != nil {
		return upload.Plan{}, err
	}
	all, err := s.machines(ctx)
	if err != nil {
		return upload.Plan{}, err
	}
	hit, err := find(all, img)
	if err != nil {
		return upload.Plan{}, err
	}
	if hit != nil {
		o := hit.object()
		return upload.Plan{Found: &o}, nil
	}
	src, err := newSource(img)
	if err != nil {
		return upload.Plan{}, err
	}
	if err := t.space(ctx, s, src.size); err != nil {
		return upload.Plan{}, err
	}
	return upload.Plan{Bytes: src.size, Steps: []string{
		fmt.Sprintf("import a machine with a thin disk of %d bytes into the datastore %s", vmdk.Capacity(img.RawSize), t.Datastore),
		fmt.Sprintf("send %d bytes of VMDK to the host that vCenter names", src.size),
		"make it the template " + versionName(img.Name, img.Version),
	}}, nil
}

// space refuses what cannot fit: the disk is never smaller than what is sent.
func (t *Target) space(ctx context.Context, s *session, bytes int64) error {
	v, err := s.one(ctx, s.datastore, "summary")
	if err != nil {
		return failed(ctx, "looking at the datastore "+t.Datastore, err)
	}
	sum, _ := v.(types.DatastoreSummary)
	switch {
	case !sum.Accessible || sum.MaintenanceMode != "" && sum.MaintenanceMode != string(types.DatastoreSummaryMaintenanceModeStateNormal):
		return fmt.Errorf("looking at the datastore %s: %w: it is not accessible, or in maintenance", t.Datastore, upload.ErrServer)
	case sum.FreeSpace < bytes:
		return fmt.Errorf("looking at the datastore %s: %w: it has %d bytes left, and the image has %d", t.Datastore, upload.ErrSpace, sum.FreeSpace, bytes)
	}
	return nil
}

// Upload implements upload.Target.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	if err := checkNames(img); err != nil {
		return upload.Object{}, err
	}
	s, err := t.open(ctx)
	if err != nil {
		return upload.Object{}, err
	}
	for _, l := range j.Left() {
		if err := t.settle(ctx, s, img, l, ev); err != nil {
			return upload.Object{}, err
		}
		if err := j.Forget(l); err != nil {
			return upload.Object{}, err
		}
	}
	all, err := s.machines(ctx)
	if err != nil {
		return upload.Object{}, err
	}
	hit, err := find(all, img)
	if err != nil {
		return upload.Object{}, err
	}
	if hit != nil {
		return hit.object(), nil
	}
	return t.make(ctx, s, img, j, ev)
}

// make imports under a name of its own, and gives it the version's name when all is
// there.
func (t *Target) make(ctx context.Context, s *session, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	var random [markSize]byte
	if _, err := io.ReadFull(t.Random, random[:]); err != nil {
		return upload.Object{}, fmt.Errorf("making a name for an import: %w", err)
	}
	name := versionName(img.Name, img.Version) + "." + hex.EncodeToString(random[:])
	left := upload.Leftover{Kind: leftImport, Name: name}
	if err := j.Write(left); err != nil {
		return upload.Object{}, err
	}
	ref, err := t.importMachine(ctx, s, img, name, func(ref types.ManagedObjectReference) error {
		left.ID = ref.Value
		return j.Write(left)
	}, ev)
	if err != nil {
		return upload.Object{}, err
	}
	if _, err := methods.MarkAsTemplate(ctx, s, &types.MarkAsTemplate{This: ref}); err != nil {
		return upload.Object{}, failed(ctx, "making a template of "+name, err)
	}
	o, err := t.publish(ctx, s, img, ref, name)
	if err != nil {
		return upload.Object{}, err
	}
	return o, j.Forget(left)
}

// publish gives a template the version's name. If another upload was quicker it
// takes that one, and removes its own. The name of a version that has become current
// is free again, so that it does not suffice to have got it: of two, the second one
// sees the first.
func (t *Target) publish(ctx context.Context, s *session, img upload.Image, ref types.ManagedObjectReference, name string) (upload.Object, error) {
	refusal := t.rename(ctx, s, ref, versionName(img.Name, img.Version))
	all, err := s.machines(ctx)
	if err != nil {
		return upload.Object{}, errors.Join(refusal, err)
	}
	var own, other *machine
	for i, m := range all {
		switch {
		case m.ref == ref:
			own = &all[i]
		case m.finished() && m.labels[upload.LabelName] == img.Name && m.digest() == img.Digest:
			other = &all[i]
		}
	}
	switch {
	case other != nil:
		if err := t.destroy(ctx, s, ref, name); err != nil {
			return upload.Object{}, err
		}
		return other.object(), nil
	case own != nil && own.finished():
		return own.object(), nil
	case refusal != nil:
		return upload.Object{}, refusal
	}
	return upload.Object{}, fmt.Errorf("reading %s again: %w: it is gone", name, upload.ErrServer)
}

// settle removes what an earlier upload left; a template that only lacks its name
// gets it.
func (t *Target) settle(ctx context.Context, s *session, img upload.Image, l upload.Leftover, ev upload.Events) error {
	for {
		all, err := s.machines(ctx)
		if err != nil {
			return err
		}
		if m := named(all, l.Name); m != nil && m.ours() && m.template && m.digest() == img.Digest {
			ev(upload.Event{Phase: "finishing", Note: l.Name + " is whole already: an earlier upload sent it"})
			_, err := t.publish(ctx, s, img, m.ref, l.Name)
			return err
		}
		err = t.clean(ctx, s, l)
		if !errors.Is(err, upload.ErrInUse) {
			return err
		}
		ev(upload.Event{Phase: "waiting for the end of the lease", Note: "an earlier import is not over for vCenter yet, which takes five minutes: " + err.Error()})
		if err := t.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for the end of an earlier import: %w", upload.CallError(ctx, err))
		}
	}
}

// rename names a machine. It is done, too, if another did the same meanwhile.
func (t *Target) rename(ctx context.Context, s *session, ref types.ManagedObjectReference, name string) error {
	answer, err := methods.Rename_Task(ctx, s, &types.Rename_Task{This: ref, NewName: name})
	if err == nil {
		err = t.await(ctx, s, answer.Returnval)
	}
	if err == nil {
		return nil
	}
	if v, rerr := s.one(ctx, ref, "name"); rerr == nil && v == name {
		return nil
	}
	return failed(ctx, "renaming "+ref.Value+" to "+name, err)
}

// destroy removes a machine with its disks; what is gone is no error.
func (t *Target) destroy(ctx context.Context, s *session, ref types.ManagedObjectReference, name string) error {
	answer, err := methods.Destroy_Task(ctx, s, &types.Destroy_Task{This: ref})
	if err == nil {
		err = t.await(ctx, s, answer.Returnval)
	}
	if err == nil || gone(err) {
		return nil
	}
	return failed(ctx, "deleting "+name, err)
}

// List implements upload.Target.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	s, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	field, err := s.field(ctx, fieldPrevious)
	if err != nil {
		return nil, err
	}
	all, err := s.machines(ctx)
	if err != nil {
		return nil, err
	}
	return objects(all, name, field, t.Now()), nil
}

// Promote implements upload.Target: this one gets the options of now, the former current
// one its version's name back, and this one the family's. Between the two nothing is current; broken off
// there, the next promotion mends it.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	s, err := t.open(ctx)
	if err != nil {
		return err
	}
	all, err := s.machines(ctx)
	if err != nil {
		return err
	}
	m, err := byID(all, o)
	if err != nil {
		return fmt.Errorf("promoting: %w", err)
	}
	family := m.labels[upload.LabelName]
	at := named(all, family)
	if at == nil || at.current() {
		if err := t.renew(ctx, s, *m); err != nil {
			return err
		}
	}
	switch {
	case at != nil && at.ref == m.ref:
		return nil
	case at != nil && !at.current():
		return fmt.Errorf("promoting %s: %w: %s is no template of imagectl's", m.name, upload.ErrTaken, family)
	case at != nil:
		version := at.labels[upload.LabelVersion]
		if err := s.setField(ctx, m.ref, fieldPrevious, version); err != nil {
			return err
		}
		if err := t.rename(ctx, s, at.ref, versionName(family, version)); err != nil {
			return err
		}
	}
	return t.rename(ctx, s, m.ref, family)
}

// Delete implements upload.Target.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	s, err := t.open(ctx)
	if err != nil {
		return err
	}
	all, err := s.machines(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.ref.Value == o.ID && m.lost(t.Now()) {
			return t.destroy(ctx, s, m.ref, m.name)
		}
	}
	m, err := byID(all, o)
	if err != nil {
		return fmt.Errorf("deleting: %w", err)
	}
	if m.current() {
		return fmt.Errorf("deleting %s: %w: it is the family's current template", m.name, upload.ErrInUse)
	}
	user, err := t.user(ctx, s, m.ref)
	if err != nil {
		return err
	}
	if user != "" {
		return fmt.Errorf("deleting %s: %w: the disk of %s lies on its disk", m.name, upload.ErrInUse, user)
	}
	return t.destroy(ctx, s, m.ref, m.name)
}

// Clean implements upload.Target.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	s, err := t.open(ctx)
	if err != nil {
		return err
	}
	return t.clean(ctx, s, left)
}

// clean removes a half import. It has the name that was made for it: the finished
// one, and a clone of it, have another.
func (t *Target) clean(ctx context.Context, s *session, left upload.Leftover) error {
	if left.Kind != leftImport || left.Name == "" {
		return fmt.Errorf("cleaning %s %q: vCenter has no such thing of ours", left.Kind, left.Name)
	}
	all, err := s.machines(ctx)
	if err != nil {
		return err
	}
	m := named(all, left.Name)
	if m == nil || !m.ours() {
		return nil
	}
	return t.destroy(ctx, s, m.ref, m.name)
}

// Verify implements upload.Target.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	s, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.machines(ctx)
	if err != nil {
		return nil, err
	}
	m, err := byID(all, o)
	if err != nil {
		return nil, fmt.Errorf("verifying: %w", err)
	}
	checks := []upload.Check{
		upload.CompareLabels(func(key string) string { return m.labels[key] }, img),
		upload.CompareFile(m.labels[upload.LabelFile], img),
	}
	disks, err := s.disks(ctx, m.ref)
	if err != nil {
		return nil, failed(ctx, "reading the hardware of "+m.name, err)
	}
	capacity := int64(0)
	if len(disks) == 1 {
		capacity = disks[0].CapacityInBytes
	}
	checks = append(checks, upload.Compare("size of the disk", strconv.FormatInt(capacity, 10), strconv.FormatInt(vmdk.Capacity(img.RawSize), 10)))
	return append(checks, upload.Check{Name: "stored bytes", Result: upload.Unprovable, Detail: "vCenter keeps no digest of a disk; what arrived was compared while it was sent"}), nil
}

var _ upload.Target = (*Target)(nil)
