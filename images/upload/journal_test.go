package upload_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

func key(digest byte) upload.Key {
	return upload.Key{Target: "one-1", Image: upload.Image{Name: "prod-worker", Digest: strings.Repeat(string(digest), 64), Format: store.QCOW2}}
}

func open(t *testing.T, dir string) *upload.FileJournal {
	t.Helper()
	j, err := upload.OpenJournal(dir, key('a'))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestJournalRemembersWhatIsNotForgotten(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state", "uploads")
	j := open(t, dir)
	one, two := upload.Leftover{Kind: "image", Name: "a", Note: "n"}, upload.Leftover{Kind: "image", Name: "b"}
	must(t, j.Write(one))
	must(t, j.Write(two))
	one.ID = "7"
	must(t, j.Write(one))
	must(t, j.Forget(two))
	must(t, j.Close())

	j = open(t, dir)
	if diff := cmp.Diff([]upload.Leftover{one}, j.Left()); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if all, err := upload.Journals(dir, "one-1"); err != nil || len(all) != 1 {
		t.Errorf("journals are %v, %v", all, err)
	}
	if all, err := upload.Journals(dir, "one"); err != nil || len(all) != 0 {
		t.Errorf("journals of another target are %v, %v", all, err)
	}
	must(t, j.Forget(one))
	must(t, j.Close())
	if all, err := os.ReadDir(dir); err != nil || len(all) != 0 {
		t.Errorf("left are %v, %v", all, err)
	}
}

// A line that the machine stopped in the middle of speaks of nothing that was made.
func TestJournalCutsOffALineWithoutAnEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	must(t, j.Write(upload.Leftover{Kind: "image", Name: "a"}))
	must(t, j.Close())
	all, err := upload.Journals(dir, "one-1")
	must(t, err)
	f, err := os.OpenFile(all[0], os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString(`{"write":{"kind":"image","na`)
	must(t, err)
	must(t, f.Close())

	j = open(t, dir)
	must(t, j.Write(upload.Leftover{Kind: "image", Name: "b"}))
	must(t, j.Close())
	j = open(t, dir)
	if got := j.Left(); len(got) != 2 || got[0].Name != "a" || got[1].Name != "b" {
		t.Errorf("left is %+v", got)
	}
	must(t, j.Close())
}

func TestJournalThatIsDamagedIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	must(t, j.Write(upload.Leftover{Kind: "image", Name: "a"}))
	must(t, j.Close())
	all, err := upload.Journals(dir, "one-1")
	must(t, err)
	must(t, os.WriteFile(all[0], []byte("what\n"), 0o600))
	if _, err := upload.OpenJournal(dir, key('a')); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("got %v", err)
	}
}

func TestJournalHasOneHolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := open(t, dir)
	if _, err := upload.OpenJournal(dir, key('a')); !errors.Is(err, upload.ErrRunning) {
		t.Errorf("got %v, want ErrRunning", err)
	}
	other, err := upload.OpenJournal(dir, key('b'))
	must(t, err)
	must(t, other.Close())
	must(t, j.Close())
	must(t, open(t, dir).Close())
}
