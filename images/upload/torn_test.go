package upload

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/images/store"
)

// fullDisk takes a part of what is written, and keeps it while broken.
type fullDisk struct {
	file
	room   int
	broken bool
}

var errFull = errors.New("no space left on device")

func (d *fullDisk) Write(b []byte) (int, error) {
	if len(b) <= d.room {
		return d.file.Write(b)
	}
	n, err := d.file.Write(b[:d.room])
	return n, errors.Join(err, errFull)
}

func (d *fullDisk) Truncate(size int64) error {
	if d.broken {
		return errFull
	}
	return d.file.Truncate(size)
}

// newJournal is a journal, and what opens it again.
func newJournal(t *testing.T) (j *FileJournal, again func() (*FileJournal, error)) {
	t.Helper()
	dir := t.TempDir()
	again = func() (*FileJournal, error) {
		return OpenJournal(dir, Key{Target: "one-1", Image: Image{Name: "prod-worker", Digest: strings.Repeat("a", 64), Format: store.QCOW2}})
	}
	j, err := again()
	if err != nil {
		t.Fatal(err)
	}
	return j, again
}

// What a disk that was full took of a line is not in the way of the next one.
func TestJournalGoesOnAfterAFullDisk(t *testing.T) {
	t.Parallel()
	j, again := newJournal(t)
	disk := &fullDisk{file: j.f, room: 1 << 20}
	j.f = disk
	write := func(name string, want error) {
		t.Helper()
		if err := j.Write(Leftover{Kind: "image", Name: name}); !errors.Is(err, want) {
			t.Errorf("writing %s: %v, want %v", name, err, want)
		}
	}
	write("a", nil)
	disk.room = 20
	write("b", errFull)
	disk.broken = true
	disk.room = 1 << 20
	write("c", errFull) // not behind half a line
	disk.broken = false
	write("d", nil)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, err := again()
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if left := j.Left(); len(left) != 2 || left[0].Name != "a" || left[1].Name != "d" {
		t.Errorf("left is %+v", left)
	}
}

// A process that is started has all files of ours until it runs its program, a moment
// after we may have closed them.
func TestJournalIsFreeWhenItIsClosedWhoeverHasItsFile(t *testing.T) {
	t.Parallel()
	j, again := newJournal(t)
	if err := j.Write(Leftover{Kind: "image", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	child, err := unix.Dup(int(j.f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = again(); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}
