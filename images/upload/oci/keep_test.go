package oci

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

func TestKeepSendsEachFileOnceAndNamesThemAll(t *testing.T) {
	r := newRack(t, true)
	keeps(t, target(t, r, Artifact))
	r.changes()
	keeps(t, target(t, r, Artifact))
	if got := r.changes(); len(got) != 1 {
		t.Errorf("of what was there, more than the manifest was sent again: %v", got)
	}
}

// keeps has a registry keep files and reads them again.
func keeps(t *testing.T, to *Target) {
	t.Helper()
	dir := t.TempDir()
	content := map[string][]byte{"lab-pxe.vmlinuz": []byte("kernel"), "lab-worker.raw.zst": bytes.Repeat([]byte("disk"), 1<<20)}
	var all []store.Artefact
	for _, name := range []string{"lab-pxe.vmlinuz", "lab-worker.raw.zst"} {
		b := content[name]
		write(t, filepath.Join(dir, name), b)
		all = append(all, store.Artefact{Name: name, Format: store.RawZstd, Size: int64(len(b)), SHA256: hexSum(b)})
	}
	if err := to.Keep(t.Context(), "lab", all, dir, quiet); err != nil {
		t.Fatal(err)
	}
	m, found, err := to.get(t.Context(), to.repo.Tag("lab_served"))
	if err != nil || !found || len(m.Layers) != len(all) || m.ArtifactType != servedType {
		t.Errorf("the manifest that keeps them: %+v, %v, %v", m.Manifest, found, err)
	}
	if images, err := to.List(t.Context(), ""); err != nil || len(images) > 0 {
		t.Errorf("they are taken for images: %v, %v", images, err)
	}
	for _, a := range all {
		r, err := to.Open(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, content[a.Name]) {
			t.Errorf("%s: read %d bytes, which are others: %v", a.Name, len(got), err)
		}
		r.Close()
	}
	missing := store.Artefact{Name: "other", Size: 1, SHA256: hexSum([]byte("other"))}
	if _, err := to.Open(t.Context(), missing); !errors.Is(err, upload.ErrNotFound) {
		t.Errorf("what was never kept: got %v", err)
	}
}

// A registry compares what it is sent with its name.
func TestKeepOfAChangedFileFails(t *testing.T) {
	r := newRack(t, true)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), []byte("changed"))
	a := store.Artefact{Name: "a", Size: 7, SHA256: hexSum([]byte("as made"))}
	if err := target(t, r, Artifact).Keep(t.Context(), "lab", []store.Artefact{a}, dir, quiet); err == nil {
		t.Error("it was taken")
	}
	if _, err := target(t, r, Artifact).Open(t.Context(), a); !errors.Is(err, upload.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
}
