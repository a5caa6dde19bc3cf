package proxmox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// List implements upload.Target.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	all, err := t.machines(ctx)
	if err != nil {
		return nil, err
	}
	files, err := t.files(ctx, name)
	return append(files, objects(all, name, t.Now())...), err
}

// filePrefix is of the ID of a file, which is no VMID.
const filePrefix = "file/"

// fileForm is the name of a file that an upload sends: FAMILY-FLATCAR-DIGEST8, the mark of
// the upload, and the format.
var fileForm = regexp.MustCompile(`^(.+)-([0-9][0-9A-Za-z.]*-([0-9a-f]{8}))\.[0-9a-f]{8}\.(qcow2|raw)$`)

// files are those of uploads on the import storage which nobody has deleted for a day:
// whoever sent them has lost the journal.
func (t *Target) files(ctx context.Context, family string) ([]upload.Object, error) {
	var all []struct {
		ID      string `json:"volid"`
		Created int64  `json:"ctime"`
	}
	if err := t.get(ctx, t.node("storage", t.Import, "content"), url.Values{"content": {"import"}}, &all); err != nil {
		return nil, fmt.Errorf("listing the storage %s: %w", t.Import, err)
	}
	var out []upload.Object
	for _, f := range all {
		file, is := strings.CutPrefix(f.ID, t.volume(""))
		m := fileForm.FindStringSubmatch(file)
		at := time.Unix(f.Created, 0).UTC()
		if !is || m == nil || family != "" && m[1] != family || f.Created == 0 || t.Now().Sub(at) < halfLimit {
			continue
		}
		out = append(out, upload.Object{ID: filePrefix + file, Name: m[1], Version: m[2], Digest: m[3], Broken: true, Created: at, State: "file on " + t.Import})
	}
	return out, nil
}

// Promote implements upload.Target. One call makes the machine current: it counts the
// family's promotion in the notes, and gives it the family's name and the hardware of
// now. Then whoever had that name gets the version's back.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	// Somebody who promotes at the same time has changed what was read.
	const rounds = 5
	var err error
	for range rounds {
		if err = t.promote(ctx, o); !errors.Is(err, errChanged) {
			return err
		}
	}
	return err
}

func (t *Target) promote(ctx context.Context, o upload.Object) error {
	all, err := t.machines(ctx)
	if err != nil {
		return err
	}
	m, err := byID(all, o.ID)
	if err != nil {
		return fmt.Errorf("promoting: %w", err)
	}
	if !m.finished() {
		return fmt.Errorf("promoting VM %d: %w: it is no finished template", m.VMID, upload.ErrNotFound)
	}
	now, _ := current(all, m.family())
	if now != m {
		turn := 1
		if now != nil {
			turn += now.Turn
		}
		m.Turn = turn
	}
	hardware, err := t.renewed(ctx, m)
	if err != nil {
		return fmt.Errorf("promoting VM %d: %w", m.VMID, err)
	}
	if now != m || !m.stableName() || hardware != nil {
		if err := t.change(ctx, *m, m.family(), hardware); err != nil {
			return fmt.Errorf("promoting VM %d: %w", m.VMID, err)
		}
	}
	for _, other := range all {
		if other.family() == m.family() && other.VMID != m.VMID && other.stableName() {
			if err := t.change(ctx, other, versionName(other.family(), other.version()), nil); err != nil {
				return fmt.Errorf("naming VM %d after its version: %w", other.VMID, err)
			}
		}
	}
	return nil
}

// change writes the name, the notes and perhaps the hardware of a machine, unless somebody
// else changed it since it was read.
func (t *Target) change(ctx context.Context, m machine, name string, hardware url.Values) error {
	notes, err := m.record.notes()
	if err != nil {
		return err
	}
	form := url.Values{"name": {name}, "description": {notes}, "digest": {m.config.Digest}}
	maps.Copy(form, hardware)
	err = t.call(ctx, http.MethodPut, m.path()+"/config", form, nil)
	var no *refusal
	if errors.As(err, &no) && strings.Contains(no.text, "detected modified configuration") {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

// errChanged: a configuration is not the one that was read.
var errChanged = errors.New("it was changed meanwhile")

// Delete implements upload.Target. Proxmox VE itself refuses a template that linked
// clones lie on.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	if file, is := strings.CutPrefix(o.ID, filePrefix); is {
		if !fileForm.MatchString(file) {
			return fmt.Errorf("deleting the file %q: %w: it is not ours", file, upload.ErrTaken)
		}
		return t.cleanFile(ctx, upload.Leftover{Kind: leftFile, Name: file})
	}
	all, err := t.machines(ctx)
	if err != nil {
		return err
	}
	m, err := byID(all, o.ID)
	if err != nil {
		return fmt.Errorf("deleting: %w", err)
	}
	if now, _ := current(all, m.family()); now == m {
		return fmt.Errorf("deleting VM %d: %w: it is the family's current template", m.VMID, upload.ErrInUse)
	}
	return t.destroy(ctx, *m)
}

func (t *Target) destroy(ctx context.Context, m machine) error {
	var upid string
	doing := fmt.Sprintf("deleting VM %d", m.VMID)
	err := t.call(ctx, http.MethodDelete, m.path(), url.Values{"purge": {"1"}}, &upid)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return t.await(ctx, doing, upid)
}

// Clean implements upload.Target.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	if mine, err := upload.CleanStaged(ctx, t.Source, left); mine {
		return err
	}
	switch {
	case left.Kind == leftFile && left.Name != "":
		return t.cleanFile(ctx, left)
	case left.Kind == leftMachine && left.Name != "":
		return t.cleanMachine(ctx, left)
	}
	return fmt.Errorf("cleaning %s %q: Proxmox VE has no such thing of ours", left.Kind, left.Name)
}

// running asks for tasks of a kind that run on our node, of a machine or of all.
func (t *Target) running(ctx context.Context, kind, id string) (upids []string, err error) {
	query := url.Values{"source": {"active"}, "typefilter": {kind}}
	if id != "" {
		query.Set("vmid", id)
	}
	var all []struct {
		UPID string `json:"upid"`
		Type string `json:"type"`
		ID   string `json:"id"`
		End  int64  `json:"endtime"`
	}
	if err := t.get(ctx, t.node("tasks"), query, &all); err != nil {
		return nil, err
	}
	for _, k := range all {
		if k.Type == kind && k.End == 0 && (id == "" || k.ID == id) {
			upids = append(upids, k.UPID)
		}
	}
	return upids, nil
}

// idle waits until no task of a kind runs.
func (t *Target) idle(ctx context.Context, kind, id string) error {
	for {
		busy, err := t.running(ctx, kind, id)
		if err != nil || len(busy) == 0 {
			return err
		}
		if err := t.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for task %s: %w", busy[0], upload.CallError(ctx, err))
		}
	}
}

// cleanFile deletes a file that was sent. Where it is not known which task stores it,
// all that store files are waited for.
func (t *Target) cleanFile(ctx context.Context, left upload.Leftover) error {
	var err error
	if left.Note == "" {
		if err = t.idle(ctx, "imgcopy", ""); err == nil {
			err = t.idle(ctx, "download", "")
		}
	} else {
		_, _, err = t.end(ctx, left.Note)
	}
	if err != nil && !errors.Is(err, upload.ErrNotFound) {
		return err
	}
	var upid string
	err = t.call(ctx, http.MethodDelete, t.node("storage", t.Import, "content", t.volume(left.Name)), nil, &upid)
	if err == nil {
		err = t.await(ctx, "deleting "+left.Name, upid)
	}
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	return err
}

// cleanMachine deletes a machine that an upload made and that is no template. The
// task that makes it is stopped where it is known to be ours; another upload of the
// same image would have the same VMID.
func (t *Target) cleanMachine(ctx context.Context, left upload.Leftover) error {
	id, err := strconv.Atoi(left.Name)
	if err != nil {
		return fmt.Errorf("cleaning the machine %q: it is no VMID", left.Name)
	}
	if left.ID == "" {
		err = t.idle(ctx, "qmcreate", left.Name)
	} else {
		err = t.stop(ctx, left.ID)
	}
	if err != nil && !errors.Is(err, upload.ErrNotFound) {
		return err
	}
	all, err := t.machines(ctx)
	if err != nil {
		return err
	}
	m, err := byID(all, strconv.Itoa(id))
	if err != nil || m.Mark != left.Note || bool(m.Template) {
		return nil
	}
	err = t.destroy(ctx, *m)
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	return err
}

// stop ends a task; Proxmox VE removes what a making task has begun.
func (t *Target) stop(ctx context.Context, upid string) error {
	path, err := taskPath(upid)
	if err != nil {
		return err
	}
	if err := t.call(ctx, http.MethodDelete, path, nil, nil); err != nil {
		return err
	}
	_, _, err = t.end(ctx, upid)
	return err
}

// Verify implements upload.Target.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	all, err := t.machines(ctx)
	if err != nil {
		return nil, err
	}
	m, err := byID(all, o.ID)
	if err != nil {
		return nil, fmt.Errorf("verifying: %w", err)
	}
	checks := []upload.Check{
		upload.CompareLabels(func(key string) string { return m.Audit[key] }, img),
		upload.CompareFile(m.Audit[upload.LabelFile], img),
	}
	size := upload.Check{Name: "size of the disk", Result: upload.Good, Detail: fmt.Sprintf("%d bytes, the image has %d", sizeOf(m.Disk), img.RawSize)}
	if sizeOf(m.Disk) < img.RawSize {
		size.Result = upload.Bad
	}
	state := upload.Compare("template", strconv.FormatBool(m.finished()), "true")
	return append(checks, size, state, upload.Check{Name: "stored bytes", Result: upload.Unprovable, Detail: "Proxmox VE keeps no digest of a disk; the SHA-256 of the file was compared when it was sent"}), nil
}

var sizeForm = regexp.MustCompile(`(?:^|,)size=(\d+)([KMGT]?)(?:,|$)`)

// sizeOf reads the size of a drive, in bytes; 0 if it says none.
func sizeOf(drive string) int64 {
	m := sizeForm.FindStringSubmatch(drive)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0
	}
	return n << (10 * (strings.Index("KMGT", m[2]) + min(len(m[2]), 1)))
}

var _ upload.Target = (*Target)(nil)
