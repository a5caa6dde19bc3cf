package s3

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

func TestKeepSendsEachFileOnceUnderItsDigest(t *testing.T) {
	f := newFake()
	server := serve(t, f)
	keeps(t, target(t, f, server.URL), 3*partSize)
	puts := len(f.puts)
	keeps(t, target(t, f, server.URL), 3*partSize)
	if len(f.puts) != puts {
		t.Errorf("what was there was sent again: %v", f.puts[puts:])
	}
}

// keeps has a store keep files, one of that size, and reads them again.
func keeps(t *testing.T, to *Target, size int) {
	t.Helper()
	dir := t.TempDir()
	content := map[string][]byte{"lab-pxe.vmlinuz": []byte("kernel"), "lab-worker.raw.zst": bytes.Repeat([]byte("disk"), size/4)}
	var all []store.Artefact
	for name, b := range content {
		write(t, filepath.Join(dir, name), b)
		all = append(all, store.Artefact{Name: name, Format: store.RawZstd, Size: int64(len(b)), SHA256: hexSum(b)})
	}
	if err := to.Keep(t.Context(), "lab", all, dir, quiet); err != nil {
		t.Fatal(err)
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

func TestKeepRefusesWhatIsNotWhatWasBuilt(t *testing.T) {
	f := newFake()
	server := serve(t, f)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), []byte("changed"))
	a := store.Artefact{Name: "a", Size: 7, SHA256: hexSum([]byte("as made"))}
	want := filepath.Join(dir, "a") + " was changed after it was built (its digest is " + hexSum([]byte("changed"))[:12] + "…, the manifest says " + a.SHA256[:12] + "…): run imagectl build"
	if err := target(t, f, server.URL).Keep(t.Context(), "lab", []store.Artefact{a}, dir, quiet); err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if err := os.Remove(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := target(t, f, server.URL).Keep(t.Context(), "lab", []store.Artefact{a}, dir, quiet); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is gone: got %v", err)
	}
	if len(f.puts) > 0 {
		t.Errorf("sent all the same: %v", f.puts)
	}
}
