package vsphere

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/imagectl/imagectl/images/upload"
)

// Keys of advanced settings: those of the audit record, and ours.
const (
	keyPrefix   = "guestinfo.imagectl."
	keyUploaded = "uploaded"
)

// fieldPrevious is the custom attribute of the current template that names the
// version which was so before.
const fieldPrevious = "imagectl-previous"

// record is the audit record as advanced settings.
func (t *Target) record(img upload.Image, now time.Time) []types.BaseOptionValue {
	audit := img.Audit()
	audit[keySettings] = t.settings()
	audit[keyUploaded] = now.UTC().Format(time.RFC3339Nano)
	var out []types.BaseOptionValue
	for _, k := range slices.Sorted(maps.Keys(audit)) {
		out = append(out, &types.OptionValue{Key: keyPrefix + k, Value: audit[k]})
	}
	return out
}

// machine is a virtual machine or template of the folder.
type machine struct {
	ref      types.ManagedObjectReference
	name     string
	template bool
	// labels are our advanced settings without their prefix; attributes are custom
	// attributes by their number.
	labels     map[string]string
	attributes map[int32]string
}

func (m machine) ours() bool { return m.labels[upload.LabelOurs] == "1" }

func (m machine) digest() string {
	return strings.TrimPrefix(m.labels[upload.LabelDigest], "sha256:")
}

// finished tells a version from a half import, and from what somebody cloned from
// one, which has its settings, too.
func (m machine) finished() bool {
	family, version := m.labels[upload.LabelName], m.labels[upload.LabelVersion]
	return m.ours() && (m.template || m.changing()) && family != "" && (m.name == family || m.name == versionName(family, version))
}

// changing tells of a template that is a machine for a moment (renew).
func (m machine) changing() bool {
	for _, v := range m.attributes {
		if v == changingMark {
			return true
		}
	}
	return false
}

// current is the one that has the family's stable name.
func (m machine) current() bool { return m.finished() && m.name == m.labels[upload.LabelName] }

func (m machine) object() upload.Object {
	at, _ := time.Parse(time.RFC3339Nano, m.labels[keyUploaded])
	state := "template "
	if !m.template {
		state = "being changed: "
	}
	return upload.Object{
		ID: m.ref.Value, Name: m.labels[upload.LabelName], Version: m.labels[upload.LabelVersion], Digest: m.digest(),
		Current: m.current(), Created: at, State: state + m.name,
	}
}

// retrieve reads properties of objects, in as many answers as it takes.
func (s *session) retrieve(ctx context.Context, spec types.PropertyFilterSpec) ([]types.ObjectContent, error) {
	return mo.RetrievePropertiesEx(ctx, s, types.RetrievePropertiesEx{This: s.ServiceContent.PropertyCollector, SpecSet: []types.PropertyFilterSpec{spec}})
}

// properties reads some of one object; what is not set is not there.
func (s *session) properties(ctx context.Context, ref types.ManagedObjectReference, names ...string) (map[string]any, error) {
	all, err := s.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: ref}},
		PropSet:   []types.PropertySpec{{Type: ref.Type, PathSet: names}},
	})
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, o := range all {
		for _, m := range o.MissingSet {
			return nil, refused(&m.Fault)
		}
		for _, p := range o.PropSet {
			out[p.Name] = p.Val
		}
	}
	return out, nil
}

// one reads a property of one object; nil if it is not set.
func (s *session) one(ctx context.Context, ref types.ManagedObjectReference, name string) (any, error) {
	p, err := s.properties(ctx, ref, name)
	return p[name], err
}

// machines are those of the folder itself. What somebody may not see is not there.
func (s *session) machines(ctx context.Context) ([]machine, error) {
	yes, no := true, false
	all, err := s.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: s.folder, Skip: &yes, SelectSet: []types.BaseSelectionSpec{
			&types.TraversalSpec{Type: "Folder", Path: "childEntity", Skip: &no}}}},
		PropSet: []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"name", "config.template", "config.extraConfig", "customValue"}}},
	})
	if err != nil {
		return nil, failed(ctx, "listing the folder", err)
	}
	var out []machine
	for _, o := range all {
		out = append(out, read(o))
	}
	return out, nil
}

func read(o types.ObjectContent) machine {
	m := machine{ref: o.Obj, labels: map[string]string{}, attributes: map[int32]string{}}
	for _, p := range o.PropSet {
		switch v := p.Val.(type) {
		case string:
			m.name = v
		case bool:
			m.template = v
		case types.ArrayOfOptionValue:
			for _, b := range v.OptionValue {
				o := b.GetOptionValue()
				if key, is := strings.CutPrefix(o.Key, keyPrefix); is {
					m.labels[key] = fmt.Sprint(o.Value)
				}
			}
		case types.ArrayOfCustomFieldValue:
			for _, b := range v.CustomFieldValue {
				if f, is := b.(*types.CustomFieldStringValue); is {
					m.attributes[f.Key] = f.Value
				}
			}
		}
	}
	return m
}

// named finds a machine by its name in the folder.
func named(all []machine, name string) *machine {
	if i := slices.IndexFunc(all, func(m machine) bool { return m.name == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

// find looks for the version of an image. What is not ours and has a name that is
// needed is refused.
func find(all []machine, img upload.Image) (*machine, error) {
	for _, name := range []string{img.Name, versionName(img.Name, img.Version)} {
		if m := named(all, name); m != nil && (!m.finished() || m.labels[upload.LabelName] != img.Name) {
			return nil, fmt.Errorf("looking for %s in the folder: %w: it was not made by imagectl, or is no template any more; give the image another name, or another folder", name, upload.ErrTaken)
		}
	}
	var hit *machine
	for i, m := range all {
		if !m.finished() || m.labels[upload.LabelName] != img.Name {
			continue
		}
		if m.digest() == img.Digest {
			hit = &all[i]
		} else if m.labels[upload.LabelVersion] == img.Version {
			return nil, fmt.Errorf("looking for %s: %w: it is there with the digest %s, and this disk has %s; a version never changes", m.name, upload.ErrTaken, m.digest(), img.Digest)
		}
	}
	return hit, nil
}

// byID finds a finished version.
func byID(all []machine, o upload.Object) (*machine, error) {
	for i, m := range all {
		if m.ref.Value == o.ID && m.finished() {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("looking for the template %s: %w", o.ID, upload.ErrNotFound)
}

// markForm is the end of an import's name, behind the version's.
var markForm = regexp.MustCompile(`^\.[0-9a-f]{8}$`)

// lost tells of an import that nobody has finished for a day: whoever began it has lost
// the journal.
func (m machine) lost(now time.Time) bool {
	end, is := strings.CutPrefix(m.name, versionName(m.labels[upload.LabelName], m.labels[upload.LabelVersion]))
	at, err := time.Parse(time.RFC3339Nano, m.labels[keyUploaded])
	return m.ours() && is && markForm.MatchString(end) && err == nil && now.Sub(at) >= abandoned
}

// objects are the finished versions of a family, or of all, and lost imports, oldest
// first. field is the number of our attribute.
func objects(all []machine, name string, field int32, now time.Time) []upload.Object {
	previous := map[string]string{}
	for _, m := range all {
		if m.current() {
			previous[m.name] = m.attributes[field]
		}
	}
	var out []upload.Object
	for _, m := range all {
		lost := m.lost(now)
		if !m.finished() && !lost || name != "" && m.labels[upload.LabelName] != name {
			continue
		}
		o := m.object()
		if lost {
			o.Broken, o.State = true, "import "+m.name
		}
		o.Previous = !o.Current && previous[o.Name] == o.Version
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b upload.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return out
}

// noField is no number of a custom attribute.
const noField = -1

// field is the number of a custom attribute of ours, noField if there is none yet.
func (s *session) field(ctx context.Context, name string) (int32, error) {
	v, err := s.one(ctx, *s.ServiceContent.CustomFieldsManager, "field")
	if err != nil {
		return noField, failed(ctx, "reading custom attributes", err)
	}
	if defs, is := v.(types.ArrayOfCustomFieldDef); is {
		for _, d := range defs.CustomFieldDef {
			if d.Name == name && (d.ManagedObjectType == "" || d.ManagedObjectType == "VirtualMachine") {
				return d.Key, nil
			}
		}
	}
	return noField, nil
}

// setField makes the attribute where there is none.
func (s *session) setField(ctx context.Context, m types.ManagedObjectReference, name, value string) error {
	key, err := s.field(ctx, name)
	if err != nil {
		return err
	}
	manager := *s.ServiceContent.CustomFieldsManager
	if key == noField {
		made, err := methods.AddCustomFieldDef(ctx, s, &types.AddCustomFieldDef{This: manager, Name: name, MoType: "VirtualMachine"})
		if err != nil {
			return failed(ctx, "making the custom attribute "+name, err)
		}
		key = made.Returnval.Key
	}
	_, err = methods.SetField(ctx, s, &types.SetField{This: manager, Entity: m, Key: key, Value: value})
	return failed(ctx, "setting the custom attribute "+name, err)
}

// await waits for a task.
func (t *Target) await(ctx context.Context, s *session, ref types.ManagedObjectReference) error {
	for {
		v, err := s.one(ctx, ref, "info")
		if err != nil {
			return err
		}
		info, _ := v.(types.TaskInfo)
		switch {
		case info.State == types.TaskInfoStateSuccess:
			return nil
		case info.State == types.TaskInfoStateError && info.Error != nil:
			return refused(info.Error)
		case info.State == types.TaskInfoStateError:
			return fmt.Errorf("%w: vCenter does not say why", upload.ErrServer)
		}
		if err := t.Wait(ctx); err != nil {
			return err
		}
	}
}
