package journal_test

import (
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/journal"
	"github.com/imagectl/imagectl/pxe/journal/journaltest"
)

// entry is a name with what it stands for.
type entry struct {
	Name  int `json:"name"`
	Value int `json:"value"`
}

type entries map[int]entry

func (m entries) Put(e entry)  { m[e.Name] = e }
func (m entries) Len() int     { return len(m) }
func (m entries) All() []entry { return slices.SortedFunc(maps.Values(m), byName) }

func byName(a, b entry) int { return a.Name - b.Name }

func kind() journal.Kind[entry] {
	return journal.Kind[entry]{
		Name:   "entries",
		Hint:   "look for the other copy",
		Encode: func(e entry) ([]byte, error) { return json.Marshal(e) },
		Decode: func(b []byte) (e entry, err error) { err = json.Unmarshal(b, &e); return e, err },
	}
}

func TestNothingIsLostWhereverThePowerGoes(t *testing.T) {
	t.Parallel()
	journaltest.PowerLoss(t, journaltest.Case[entry]{
		Kind:   kind(),
		Live:   func() journal.Live[entry] { return entries{} },
		Random: func(r *rand.Rand) entry { return entry{r.IntN(12), r.IntN(1e6)} },
		Same:   func(a, b entry) bool { return a == b },
		Rivals: func(a, b entry) bool { return a.Name == b.Name },
	})
}

// A disk that is full keeps the journal from being shortened, not from being written.
func TestWhatCannotBeShortenedIsUsedOn(t *testing.T) {
	t.Parallel()
	full := &noCreation{Disk: journaltest.NewDisk(rand.New(rand.NewPCG(1, 1)))}
	j, err := journal.OpenOn(full, "entries", kind(), entries{}, 6)
	if err != nil {
		t.Fatal(err)
	}
	full.refuse = true
	for i := range 100 {
		if err := j.Append([]entry{{1, i}}); err != nil {
			t.Fatal(err)
		}
	}
	if full.asked > 6 {
		t.Errorf("it tried to shorten the file %d times for 100 entries", full.asked)
	}
	full.Crash()
	full.refuse = false
	if j, err = journal.OpenOn(full, "entries", kind(), entries{}, 6); err != nil {
		t.Fatal(err)
	}
	if got, _ := j.Load(); !slices.Equal(got, []entry{{1, 99}}) {
		t.Errorf("got %v", got)
	}
}

type noCreation struct {
	*journaltest.Disk
	refuse bool
	asked  int
}

func (d *noCreation) Create(path string) (journal.File, error) {
	if d.refuse {
		d.asked++
		return nil, errors.New("no space left on device")
	}
	return d.Disk.Create(path)
}

func open(t *testing.T, path string) *journal.Journal[entry] {
	t.Helper()
	j, err := journal.Open(path, kind(), entries{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func TestAFileOnThisMachine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "entries")
	j := open(t, path)
	for _, e := range []entry{{1, 1}, {2, 2}, {2, 3}} {
		if err := j.Append([]entry{e}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info, err)
	}
	content, err := os.ReadFile(path)
	want := `{"name":1,"value":1,"from":0}
{"name":2,"value":2,"from":30}
{"name":2,"value":3,"from":61}
`
	if err != nil || string(content) != want {
		t.Errorf("got %s, %v, want %s", content, err, want)
	}
	// A crash may tear off any number of bytes: what was synced before stays.
	for cut := range 31 {
		if err := os.WriteFile(path, content[:61+cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _ := open(t, path).Load(); !slices.Equal(got, []entry{{1, 1}, {2, 2}}) {
			t.Fatalf("torn after %d bytes: got %v", cut, got)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]entry{{3, 3}}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestDamageToWhatWasKeptIsAnError(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "entries")
	for content, want := range map[string]string{
		"{\n" + `{"name":1,"value":1,"from":2}` + "\n":                 "unexpected end of JSON input",
		"{\n" + `{"name":1,"value":1}` + "\n":                          "unexpected end of JSON input",
		`{"name":"x"}` + "\n" + `{"name":1,"from":13}` + "\n":          "cannot unmarshal string",
		`{"name":1,"from":"x"}` + "\n" + `{"name":1,"from":22}` + "\n": "cannot unmarshal string",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := journal.Open(path, kind(), entries{})
		if err == nil || !strings.HasPrefix(err.Error(), "reading entries: "+path+":1: ") || !strings.Contains(err.Error(), want) || !strings.HasSuffix(err.Error(), "(look for the other copy)") {
			t.Errorf("%s: got %v, want %q", content, err, want)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != content {
			t.Errorf("a file that was refused is now %s, %v", now, err)
		}
	}
	// What a torn append left is none.
	if err := os.WriteFile(path, []byte("{\n"+`{"name":1,"value":1,"from":0}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := open(t, path).Load(); !slices.Equal(got, []entry{{1, 1}}) {
		t.Errorf("got %v", got)
	}
}

func TestTheFileStaysSmall(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "entries")
	j := open(t, path)
	for i := range 20 {
		if err := j.Append(slices.Repeat([]entry{{1, i}}, 500)); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() > journal.DefaultSpare*60 {
		t.Errorf("10,000 changes of one entry take %d bytes, %v", info.Size(), err)
	}
	if err := j.Append([]entry{{2, 2}}); err != nil {
		t.Fatal(err)
	}
	if got, _ := open(t, path).Load(); !slices.Equal(got, []entry{{1, 19}, {2, 2}}) {
		t.Errorf("got %v", got)
	}
}

func TestWhoWaitsIsKeptTogether(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left on device")
	queue := make(chan []entry, 1300)
	for i := range cap(queue) {
		queue <- []entry{{i, 1}, {i, 2}}
	}
	close(queue)
	var kept []entry
	var answered, refused, batches int
	gathered := 0
	gather := func() { gathered++ }
	journal.Commit(queue, func(w []entry) []entry { return w }, gather, func(all []entry) error {
		if batches++; batches == 2 {
			return full
		}
		kept = append(kept, all...)
		return nil
	}, func(batch [][]entry, err error) {
		if errors.Is(err, full) {
			refused += len(batch)
			return
		}
		answered += len(batch)
		if len(kept) != 2*answered || kept[len(kept)-1] != batch[len(batch)-1][1] {
			t.Errorf("%d are answered when %d entries are kept", answered, len(kept))
		}
	})
	if batches != 3 || answered != 1300-512 || refused != 512 || gathered != 1 {
		t.Errorf("%d batches: %d are answered, %d refused, %d times others were waited for, want once, where there was room", batches, answered, refused, gathered)
	}
}

// Many who ask one after the other share a sync; one who asks alone waits for nobody.
func TestWhoComesInACrowdIsWaitedFor(t *testing.T) {
	t.Parallel()
	queue := make(chan int, 100)
	put := func(n int) {
		for i := range n {
			queue <- i
		}
	}
	put(1)
	var batches []int
	gathered := 0
	// What comes while the disk is busy, and then while others are waited for.
	later, meanwhile := []int{2, 3, 1, 4, 9, 1, 1, 1, 0}, []int{20, 30, 0}
	journal.Commit(queue, func(i int) []int { return []int{i} }, func() {
		put(meanwhile[gathered])
		gathered++
	}, func(all []int) error {
		batches = append(batches, len(all))
		put(later[0])
		if later = later[1:]; len(later) == 0 {
			close(queue)
		}
		return nil
	}, func(batch []int, err error) {
		if len(batch) != batches[len(batches)-1] || err != nil {
			t.Errorf("%d are answered of %v, %v", len(batch), batches, err)
		}
	})
	if want := []int{1, 2, 3, 1, 4, 29, 31, 1, 1}; !slices.Equal(batches, want) || gathered != 3 {
		t.Errorf("%v were kept together, and others waited for %d times; want %v, 3 times", batches, gathered, want)
	}
}
