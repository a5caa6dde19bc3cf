package azure

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// Kinds of what a broken upload leaves.
const (
	leftDisk    = "disk"
	leftVersion = "version"
)

// disk is a managed disk, as far as it is used.
type disk struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Tags       map[string]string `json:"tags"`
	Properties struct {
		State   string    `json:"diskState"`
		Stage   string    `json:"provisioningState"`
		Created time.Time `json:"timeCreated"`
	} `json:"properties"`
}

// The states of a disk that is sent to.
const (
	waitsForBytes = "ReadyToUpload"
	takesBytes    = "ActiveUpload"
	hasBytes      = "Unattached"
)

// accessSeconds is how long the address of a disk's bytes is good.
const accessSeconds = 24 * 60 * 60

// sent is the note of a disk that has all bytes. Azure does not tell one from a disk
// that was closed half full.
const sent = "sent"

// disk goes on with the one that the journal has, or makes one, and returns it with
// all bytes in it.
func (t *Target) disk(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Leftover, error) {
	const tries = 2
	for range tries {
		left := upload.Leftover{Kind: leftDisk, Name: "imagectl-" + img.Digest[:16] + "-" + strings.ToLower(rand.Text()[:8])}
		if i := slices.IndexFunc(j.Left(), func(l upload.Leftover) bool { return l.Kind == leftDisk }); i >= 0 {
			left = j.Left()[i]
		}
		whole, err := t.fill(ctx, img, &left, j, ev)
		if err != nil || whole {
			return left, err
		}
		ev(upload.Event{Phase: "sending", Note: fmt.Sprintf("disk %s of an earlier upload cannot be gone on with and is deleted", left.Name)})
		if err := t.removeDisk(ctx, left.Name); err != nil {
			return left, err
		}
		if err := j.Forget(left); err != nil {
			return left, err
		}
	}
	return upload.Leftover{}, fmt.Errorf("sending to a disk: %w: Azure does not let it be opened", upload.ErrServer)
}

// fill makes a disk unless it is there, and sends what it has not got. whole is
// false when nothing can be made of it any more.
func (t *Target) fill(ctx context.Context, img upload.Image, left *upload.Leftover, j upload.Journal, ev upload.Events) (whole bool, err error) {
	if err := j.Write(*left); err != nil {
		return false, err
	}
	path := t.diskPath(left.Name)
	_, err = t.ask(ctx, http.MethodGet, path, apiDisks, nil, nil)
	if errors.Is(err, upload.ErrNotFound) {
		left.Note = ""
		ev(upload.Event{Phase: "making a disk"})
		err = t.makeDisk(ctx, img, path)
	}
	if err != nil {
		return false, err
	}
	d, err := t.diskIn(ctx, path, waitsForBytes, takesBytes, hasBytes)
	if err != nil {
		return false, err
	}
	if d.Properties.State == hasBytes {
		return left.Note == sent, nil
	}
	blob, err := t.openDisk(ctx, path)
	if conflicts(err) && d.Properties.State == takesBytes {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := t.pages.send(ctx, img, blob, ev); err != nil {
		return false, fmt.Errorf("sending to disk %s: %w", left.Name, err)
	}
	left.Note = sent
	if err := j.Write(*left); err != nil {
		return false, err
	}
	if _, err := t.ask(ctx, http.MethodPost, path+"/endGetAccess", apiDisks, nil, nil); err != nil {
		return false, err
	}
	ev(upload.Event{Phase: "waiting for the disk"})
	_, err = t.diskIn(ctx, path, hasBytes)
	return err == nil, err
}

func (t *Target) makeDisk(ctx context.Context, img upload.Image, path string) error {
	ask := map[string]any{
		"location": t.conf.Location, "tags": tagsOf(img), "sku": map[string]any{"name": "Standard_LRS"},
		"properties": map[string]any{
			"osType": "Linux", "hyperVGeneration": "V2", "supportedCapabilities": map[string]any{"architecture": t.conf.Arch},
			"creationData": map[string]any{"createOption": "Upload", "uploadSizeBytes": img.Size},
		},
	}
	_, err := t.ask(ctx, http.MethodPut, path, apiDisks, ask, nil)
	return err
}

// diskIn waits until a disk has one of some states.
func (t *Target) diskIn(ctx context.Context, path string, states ...string) (disk, error) {
	for {
		var d disk
		if _, err := t.ask(ctx, http.MethodGet, path, apiDisks, nil, &d); err != nil {
			return d, err
		}
		switch {
		case d.Properties.Stage == "Failed", d.Properties.Stage == "Canceled":
			return d, fmt.Errorf("making disk %s: %w: Azure says it has %s", d.Name, upload.ErrServer, d.Properties.Stage)
		case slices.Contains(states, d.Properties.State) && d.Properties.Stage == "Succeeded":
			return d, nil
		}
		if err := t.wait(ctx, fmt.Sprintf("waiting for disk %s, which is %s", d.Name, d.Properties.State)); err != nil {
			return d, err
		}
	}
}

// openDisk asks for the address that a disk's bytes are written to. It is its own
// permission, and so never in an error or the journal.
func (t *Target) openDisk(ctx context.Context, path string) (string, error) {
	var access struct {
		SAS string `json:"accessSAS"`
	}
	a, err := t.ask(ctx, http.MethodPost, path+"/beginGetAccess", apiDisks, map[string]any{"access": "Write", "durationInSeconds": accessSeconds}, &access)
	for at := ""; err == nil && a.Status == http.StatusAccepted; {
		if at = cmp.Or(a.Header.Get("Location"), at); !strings.HasPrefix(at, t.conf.Endpoint+"/") {
			return "", fmt.Errorf("opening disk %s: %w: Azure does not say where its answer will be", shortPath(path), upload.ErrServer)
		}
		if err := t.wait(ctx, "opening disk "+shortPath(path)); err != nil {
			return "", err
		}
		a, err = t.ask(ctx, http.MethodGet, at, apiDisks, nil, &access)
	}
	if err != nil {
		return "", err
	}
	return access.SAS, checkBlob(access.SAS)
}

// removeDisk closes a disk, since an open one cannot be deleted, and deletes it.
func (t *Target) removeDisk(ctx context.Context, name string) error {
	path := t.diskPath(name)
	var d disk
	_, err := t.ask(ctx, http.MethodGet, path, apiDisks, nil, &d)
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.Tags[upload.LabelOurs] != "1" {
		return fmt.Errorf("deleting disk %s: %w: it is not ours", name, upload.ErrTaken)
	}
	if d.Properties.State == takesBytes {
		if _, err := t.ask(ctx, http.MethodPost, path+"/endGetAccess", apiDisks, nil, nil); err != nil {
			return err
		}
		if _, err := t.diskIn(ctx, path, waitsForBytes, hasBytes); err != nil {
			return err
		}
	}
	return t.remove(ctx, path, apiDisks)
}
