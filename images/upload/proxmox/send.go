package proxmox

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// What a broken upload may leave: the file that was sent, and a machine that is no
// template yet.
const (
	leftFile    = "import file"
	leftMachine = "machine"
)

// markSize is the random part of an upload's file and notes, in bytes.
const markSize = 4

// Upload implements upload.Target.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	if err := checkNames(img); err != nil {
		return upload.Object{}, err
	}
	var mine *sent
	for {
		all, err := t.machines(ctx)
		if err != nil {
			return upload.Object{}, err
		}
		m, err := find(all, img)
		switch {
		case err != nil:
			return upload.Object{}, err
		case m != nil && m.finished():
			o, err := t.object(ctx, *m)
			return o, errors.Join(err, settled(j, *m), t.drop(ctx, j, mine))
		case m != nil && m.Lock != "":
			ev(upload.Event{Phase: "waiting for an upload that is under way", Note: fmt.Sprintf("VM %d is locked: %s", m.VMID, m.Lock)})
			if err := t.Wait(ctx); err != nil {
				return upload.Object{}, fmt.Errorf("waiting for VM %d: %w", m.VMID, upload.CallError(ctx, err))
			}
		case m != nil:
			if err := t.convert(ctx, *m, ev); err != nil {
				return upload.Object{}, err
			}
		default:
			if mine == nil {
				if mine, err = t.send(ctx, img, j, ev); err != nil {
					return upload.Object{}, err
				}
			}
			if err := t.make(ctx, img, j, *mine, ev); err != nil {
				return upload.Object{}, err
			}
		}
	}
}

// settled forgets a machine that is finished, whoever made it.
func settled(j upload.Journal, m machine) error {
	for _, l := range j.Left() {
		if l.Kind == leftMachine && l.Name == m.id() {
			return j.Forget(l)
		}
	}
	return nil
}

// object of a machine that is finished, with what it is to its family.
func (t *Target) object(ctx context.Context, m machine) (upload.Object, error) {
	all, err := t.machines(ctx)
	if err != nil {
		return upload.Object{}, err
	}
	for _, o := range objects(all, m.family(), t.Now()) {
		if o.ID == m.id() {
			return o, nil
		}
	}
	return upload.Object{}, fmt.Errorf("reading VM %d again: %w: it is gone", m.VMID, upload.ErrServer)
}

// sent is a file on the import storage.
type sent struct {
	mark string
	left upload.Leftover
}

// drop removes a file that has done its work.
func (t *Target) drop(ctx context.Context, j upload.Journal, s *sent) error {
	if s == nil {
		return nil
	}
	if err := t.cleanFile(ctx, s.left); err != nil {
		return err
	}
	return j.Forget(s.left)
}

// send removes what an earlier upload left and sends the file under a name of its
// own: Proxmox VE overwrites without asking.
func (t *Target) send(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (*sent, error) {
	for _, l := range j.Left() {
		if l.Kind != leftFile && l.Kind != leftMachine {
			// What a source has staged is what it goes on with.
			continue
		}
		if err := t.Clean(ctx, l); err != nil {
			return nil, err
		}
		if err := j.Forget(l); err != nil {
			return nil, err
		}
	}
	var random [markSize]byte
	if _, err := io.ReadFull(t.Random, random[:]); err != nil {
		return nil, fmt.Errorf("making a name for a file: %w", err)
	}
	s := &sent{mark: hex.EncodeToString(random[:])}
	name := versionName(img.Name, img.Version) + "." + s.mark + "." + string(img.Format)
	s.left = upload.Leftover{Kind: leftFile, Name: name}
	if err := j.Write(s.left); err != nil {
		return nil, err
	}
	give := t.push
	if t.Source != nil {
		give = t.pull
	}
	upid, release, err := give(ctx, name, img, j, ev)
	if err != nil {
		return nil, err
	}
	defer release()
	s.left.Note = upid
	if err := j.Write(s.left); err != nil {
		return nil, err
	}
	ev(upload.Event{Phase: "Proxmox VE copying the file"})
	return s, t.await(ctx, "storing "+name+" on "+t.Import, upid)
}

// push sends the file to the import storage.
func (t *Target) push(ctx context.Context, name string, img upload.Image, _ upload.Journal, ev upload.Events) (upid string, release func(), err error) {
	var done int64
	file := &counted{r: io.NewSectionReader(img.File, 0, img.Size), tell: func(n int) {
		done += int64(n)
		ev(upload.Event{Phase: "sending", Done: done, Total: img.Size})
	}}
	upid, err = t.post(ctx, "import", name, file, img.Size, img.SHA256)
	return upid, func() {}, err
}

// pull has Proxmox VE download the file to the import storage.
func (t *Target) pull(ctx context.Context, name string, img upload.Image, j upload.Journal, ev upload.Events) (upid string, release func(), err error) {
	address, release, err := t.Source.Stage(ctx, upload.Wanted{Name: versionName(img.Name, img.Version) + "." + string(img.Format), Image: img}, j, ev)
	if err != nil {
		return "", nil, fmt.Errorf("making %s readable for Proxmox VE: %w", name, err)
	}
	form := url.Values{"content": {"import"}, "filename": {name}, "url": {address}, "checksum": {img.SHA256}, "checksum-algorithm": {"sha256"}}
	if upid, err = t.begin(ctx, t.node("storage", t.Import, "download-url"), form); err != nil {
		release()
		return "", nil, fmt.Errorf("having %s downloaded to the storage %s: %w", name, t.Import, err)
	}
	return upid, release, nil
}

// post sends a file to the import storage as a form with an exact length: without
// one, and when the file is not the last field, pveproxy takes the form for a small
// one and refuses it.
func (t *Target) post(ctx context.Context, content, name string, file io.Reader, size int64, sha256 string) (upid string, err error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("sending %s to the storage %s: %w", name, t.Import, err)
	}
	var head bytes.Buffer
	form := multipart.NewWriter(&head)
	for _, f := range [][2]string{{"content", content}, {"checksum-algorithm", "sha256"}, {"checksum", sha256}} {
		if err := form.WriteField(f[0], f[1]); err != nil {
			return fail(err)
		}
	}
	if _, err := form.CreateFormFile("filename", name); err != nil {
		return fail(err)
	}
	before := head.Len()
	if err := form.Close(); err != nil {
		return fail(err)
	}
	tail := bytes.Clone(head.Bytes()[before:])
	head.Truncate(before)
	path := t.node("storage", t.Import, "upload")
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.Endpoint+"/api2/json"+path, io.MultiReader(&head, file, bytes.NewReader(tail)))
	if err != nil {
		return fail(err)
	}
	r.ContentLength = int64(before) + size + int64(len(tail))
	r.Header.Set("Content-Type", form.FormDataContentType())
	if err := t.do(r, path, &upid); err != nil {
		return fail(err)
	}
	return upid, nil
}

// counted tells of bytes as they are read.
type counted struct {
	r    io.Reader
	tell func(int)
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 {
		c.tell(n)
	}
	return n, err
}

// idOf is the n-th VMID to try for an image. Every upload of it tries the same ones
// in the same order.
func (t *Target) idOf(img upload.Image, n int) int {
	const digits = 8
	start, _ := strconv.ParseUint(img.Digest[:min(digits, len(img.Digest))], 16, 64)
	return t.FirstID + (int(start%idRange)+n)%idRange
}

// tries is how many VMIDs may be taken by others.
const tries = 100

// make makes a machine whose disk is a copy of the file, unless another upload of the
// image does so already: then it waits for that.
func (t *Target) make(ctx context.Context, img upload.Image, j upload.Journal, s sent, ev upload.Events) error {
	medium, err := t.medium(ctx)
	if err != nil {
		return err
	}
	for n := range tries {
		id := t.idOf(img, n)
		left := upload.Leftover{Kind: leftMachine, Name: strconv.Itoa(id), Note: s.mark}
		form, err := t.machineForm(img, id, s, medium)
		if err != nil {
			return err
		}
		if err := j.Write(left); err != nil {
			return err
		}
		ev(upload.Event{Phase: "Proxmox VE making the disk"})
		left.ID, err = t.begin(ctx, t.node("qemu"), form)
		if err == nil {
			if err := j.Write(left); err != nil {
				return err
			}
			if err := t.await(ctx, fmt.Sprintf("making VM %d", id), left.ID); err != nil {
				return err
			}
			return t.convert(ctx, machine{VMID: id, Node: t.Node}, ev)
		}
		if !errors.Is(err, upload.ErrTaken) {
			return fmt.Errorf("making VM %d: %w", id, err)
		}
		if err := j.Forget(left); err != nil {
			return err
		}
		again, err := t.taken(ctx, img, id, ev)
		if err != nil || again {
			return err
		}
	}
	return fmt.Errorf("making a VM: %w: the %d VMIDs from %d on are in use by others; set another vmid", upload.ErrTaken, tries, t.idOf(img, 0))
}

// createLimit is how long the answer to the beginning of a task may take, whatever
// becomes of the upload: it names the task, which a cleanup has to stop.
const createLimit = 30 * time.Second

func (t *Target) begin(ctx context.Context, path string, form url.Values) (upid string, err error) {
	answered, cancel := context.WithTimeout(context.WithoutCancel(ctx), createLimit)
	defer cancel()
	return upid, t.call(answered, http.MethodPost, path, form, &upid)
}

// taken looks at a VMID that somebody has. It returns true when that may be this
// image, and all is to be looked at again.
func (t *Target) taken(ctx context.Context, img upload.Image, id int, ev upload.Events) (bool, error) {
	var all []machine
	if err := t.get(ctx, "/cluster/resources", url.Values{"type": {"vm"}}, &all); err != nil {
		return false, err
	}
	for _, m := range all {
		if m.VMID != id {
			continue
		}
		if m.Type != "qemu" {
			return false, nil
		}
		ours, err := t.read(ctx, &m)
		switch {
		case errors.Is(err, upload.ErrAuth):
			return false, nil
		case err != nil:
			return false, err
		case ours:
			return m.disk() == img.Digest && m.family() == img.Name, nil
		case m.Lock == "create":
			// Nothing is known of a machine until its disks are there.
			ev(upload.Event{Phase: "waiting for an upload that is under way", Note: fmt.Sprintf("VM %d is being made", id)})
			if err := t.Wait(ctx); err != nil {
				return false, fmt.Errorf("waiting for VM %d: %w", id, upload.CallError(ctx, err))
			}
			return true, nil
		}
		return m.Name == "" && m.Notes == "", nil
	}
	// It is gone, or we may not see it.
	return false, nil
}

// machineForm is the template's hardware. A token may not set args, so there is no
// fw_cfg.
func (t *Target) machineForm(img upload.Image, id int, s sent, medium string) (url.Values, error) {
	settings, err := t.settings()
	if err != nil {
		return nil, err
	}
	notes, err := record{Audit: img.Audit(), VMID: id, Uploaded: t.Now().UTC(), Mark: s.mark, Settings: settings}.notes()
	if err != nil {
		return nil, err
	}
	form := url.Values{
		"vmid": {strconv.Itoa(id)}, "name": {versionName(img.Name, img.Version)}, "ostype": {"l26"}, "tags": {tag}, "description": {notes},
		"machine": {"q35"}, "bios": {string(t.Firmware)},
		"scsihw": {"virtio-scsi-single"}, "boot": {"order=scsi0"}, "serial0": {"socket"},
		"scsi0": {fmt.Sprintf("%s:0,import-from=%s,discard=on,iothread=1,ssd=1", t.Datastore, t.volume(s.left.Name))},
	}
	if t.Firmware == UEFI {
		form.Set("efidisk0", t.Datastore+":0,efitype=4m,pre-enrolled-keys=0")
	}
	maps.Copy(form, t.hardware(medium))
	return form, nil
}

// volume is the name of a file on the import storage.
func (t *Target) volume(file string) string { return t.Import + ":import/" + file }

// convert makes a template of a machine. That another upload did it, or that it is
// gone again, is seen when all is looked at again.
func (t *Target) convert(ctx context.Context, m machine, ev upload.Events) error {
	ev(upload.Event{Phase: "Proxmox VE making the template"})
	var upid string
	err := t.call(ctx, http.MethodPost, m.path()+"/template", nil, &upid)
	if err == nil {
		err = t.await(ctx, fmt.Sprintf("making a template of VM %d", m.VMID), upid)
	}
	if err == nil || errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	if ours, rerr := t.read(ctx, &m); rerr == nil && (!ours || bool(m.Template) || m.Lock != "") {
		return nil
	}
	return fmt.Errorf("making a template of VM %d: %w", m.VMID, err)
}
