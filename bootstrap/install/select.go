package install

import (
	"fmt"
	"path"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
)

// Code is a stable word for a refusal, for metrics and tests.
type Code string

// The refusals. Nothing has been written to any disk when one of them is
// returned, except that after WrongImage the disk has no partition table.
const (
	EmptyRule    Code = "disk-rule-empty"
	BadRule      Code = "disk-rule-invalid"
	NoDisk       Code = "disk-no-match"
	ManyDisks    Code = "disk-many-match"
	DiskInUse    Code = "disk-in-use"
	DiskTooSmall Code = "disk-too-small"
	BadOrder     Code = "install-order-invalid"
	WrongImage   Code = "image-digest-mismatch"
)

// RefusedError says why an installation did not happen. Its text is one
// sentence for the console.
type RefusedError struct {
	Code   Code
	Reason string
}

func (e *RefusedError) Error() string { return e.Reason }

func refuse(c Code, format string, args ...any) *RefusedError {
	return &RefusedError{Code: c, Reason: fmt.Sprintf(format, args...)}
}

// Select returns the one disk that a rule means. All set conditions must hold,
// and exactly one disk must be left; a disk that is removable is never chosen
// unless the rule names its path or its serial number, and one in use (mounted,
// or the disk this system runs from) is never chosen at all.
func Select(rule *api.DiskRule, disks []host.Disk) (host.Disk, error) {
	want := describe(rule)
	if want == "" {
		return host.Disk{}, refuse(EmptyRule, "the disk rule is empty and so matches no disk: set installDisk for this machine in cluster.yaml")
	}
	if _, err := path.Match(rule.GetModel(), ""); err != nil {
		return host.Disk{}, refuse(BadRule, "the disk rule's model %q is not a shell pattern: %v", rule.GetModel(), err)
	}
	named := rule.GetPath() != "" || rule.GetSerial() != "" || rule.GetWwn() != ""
	var found []host.Disk
	for _, d := range disks {
		if matches(rule, d) && (named || !d.Removable) {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 0:
		return host.Disk{}, refuse(NoDisk, "no disk matches the rule (%s); this machine has %s", want, list(disks))
	case len(found) > 1:
		return host.Disk{}, refuse(ManyDisks, "%d disks match the rule (%s), which must select exactly one: %s", len(found), want, list(found))
	case found[0].InUse != "":
		return host.Disk{}, refuse(DiskInUse, "the disk %s that the rule (%s) selects is in use: %s", found[0].Path, want, found[0].InUse)
	}
	return found[0], nil
}

func matches(r *api.DiskRule, d host.Disk) bool {
	// The pattern was checked above.
	model, err := path.Match(r.GetModel(), d.Model)
	return (r.GetPath() == "" || r.GetPath() == d.Path) &&
		(r.GetMinSizeBytes() == 0 || uint64(d.Size) >= r.GetMinSizeBytes()) &&
		(r.GetMaxSizeBytes() == 0 || uint64(d.Size) <= r.GetMaxSizeBytes()) &&
		(r.GetSerial() == "" || r.GetSerial() == d.Serial) &&
		(r.GetModel() == "" || err == nil && model) &&
		(r.GetWwn() == "" || r.GetWwn() == d.WWN)
}

func describe(r *api.DiskRule) string {
	var s []string
	add := func(k string, v any, set bool) {
		if set {
			s = append(s, fmt.Sprintf("%s %v", k, v))
		}
	}
	add("path", r.GetPath(), r.GetPath() != "")
	add("size at least", r.GetMinSizeBytes(), r.GetMinSizeBytes() != 0)
	add("size at most", r.GetMaxSizeBytes(), r.GetMaxSizeBytes() != 0)
	add("serial", r.GetSerial(), r.GetSerial() != "")
	add("model", r.GetModel(), r.GetModel() != "")
	add("wwn", r.GetWwn(), r.GetWwn() != "")
	return strings.Join(s, ", ")
}

func list(disks []host.Disk) string {
	if len(disks) == 0 {
		return "no disk at all"
	}
	s := make([]string, len(disks))
	for i, d := range disks {
		s[i] = fmt.Sprintf("%s (%d bytes, model %q, serial %q)", d.Path, d.Size, d.Model, d.Serial)
	}
	return strings.Join(s, ", ")
}
