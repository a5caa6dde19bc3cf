package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/store"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func key(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func seq(all ...store.Record) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		for _, r := range all {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func content() Content {
	return Content{
		Header:   Header{Cluster: "demo", At: noon, Program: "v1", Servers: []string{"https://10.0.0.1:8443"}},
		Identity: []byte("AGE-SECRET-KEY-THAT-NOBODY-MAY-SEE\n"), Leases: []byte("{}\n"), Leases6: []byte("{6}\n"),
	}
}

func written(t *testing.T, to age.Recipient, c Content, all ...store.Record) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, []age.Recipient{to}, c, seq(all...)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestABackupIsReadBackAsItWasWritten(t *testing.T) {
	t.Parallel()
	id := key(t)
	var all []store.Record
	for i := range 5000 { // several members
		all = append(all, store.Record{Key: fmt.Sprintf("values/%d", i), Value: bytes.Repeat([]byte{byte(i)}, 300)})
	}
	file := written(t, id.Recipient(), content(), all...)
	if bytes.Contains(file, []byte("NOBODY-MAY-SEE")) {
		t.Error("the identity is there in clear")
	}
	b, err := Open(bytes.NewReader(file), id)
	if err != nil {
		t.Fatal(err)
	}
	var got []store.Record
	for r, err := range b.Records() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	want := content()
	want.Format = version
	if diff := cmp.Diff(want, b.Content); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if !reflect.DeepEqual(all, got) { // a diff of so much would take seconds
		t.Errorf("%d records are not the %d that were written", len(got), len(all))
	}
}

// Whoever has lost imagectl can still get at what is in a backup.
func TestOtherToolsReadABackup(t *testing.T) {
	t.Parallel()
	id := key(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), written(t, id.Recipient(), content(), store.Record{Key: "values/a", Value: []byte("1")}), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "age -d -i key file | tar tz && age -d -i key file | tar xzO leases")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if want := "backup.json\nidentity.age\nleases\nleases6\nrecords-000001.jsonl\ncomplete.json\n{}\n"; err != nil || string(out) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, out, want)
	}
}

// The first format has no leases of DHCPv6; those that come are not known.
func TestFormatsOfOtherPrograms(t *testing.T) {
	t.Parallel()
	id := key(t)
	of := func(format int) []byte {
		c := content()
		c.Format, c.Leases6 = format, nil
		var b bytes.Buffer
		sealed, err := age.Encrypt(&b, id.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		packed := gzip.NewWriter(sealed)
		a := archive{Writer: tar.NewWriter(packed), at: noon}
		err = a.all(c, seq(store.Record{Key: "values/a", Value: []byte("1")}))
		if err := errors.Join(err, a.Writer.Close(), packed.Close(), sealed.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if c, n, err := Verify(bytes.NewReader(of(1)), id); err != nil || n != 1 || string(c.Leases) != "{}\n" || c.Leases6 != nil {
		t.Errorf("the first format: %+v, %d records, %v", c, n, err)
	}
	for _, format := range []int{0, version + 1} {
		if _, _, err := Verify(bytes.NewReader(of(format)), id); err == nil || err.Error() != fmt.Sprintf("reading the backup: its format is %d, this program reads 1 to 2; use imagectl v1", format) {
			t.Errorf("format %d: %v", format, err)
		}
	}
}

func TestADamagedBackupIsRefused(t *testing.T) {
	t.Parallel()
	id, other := key(t), key(t)
	file := written(t, id.Recipient(), content(), store.Record{Key: "values/a", Value: []byte("1")})
	if _, n, err := Verify(bytes.NewReader(file), id); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	for n := range file {
		if _, _, err := Verify(bytes.NewReader(file[:n]), id); err == nil {
			t.Fatalf("cut after %d of %d bytes, it is taken for whole", n, len(file))
		}
		flipped := bytes.Clone(file)
		flipped[n] ^= 4
		if _, _, err := Verify(bytes.NewReader(flipped), id); err == nil {
			t.Fatalf("with bit 2 of byte %d turned, it is taken for good", n)
		}
	}
	sealed := func(text string) []byte {
		var b bytes.Buffer
		w, err := age.Encrypt(&b, id.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(w, text)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	newer := content()
	newer.Identity = nil
	for _, c := range []struct {
		name string
		file []byte
		with age.Identity
		want string
	}{
		{"something else", []byte("hello, this is a text\n"), id, "it is no file of imagectl server backup, or it is damaged"},
		{"nothing", nil, id, "it is no file of imagectl server backup, or it is damaged"},
		{"another key", file, other, "it is not encrypted to this key; take the recovery key whose public half was in backup.recipients"},
		{"cut in its middle", file[:len(file)/2], id, "it is damaged or cut off"},
		{"more behind its end", append(bytes.Clone(file), 'x'), id, "it is damaged or cut off"},
		{"another encrypted file", sealed("a letter"), id, "it is damaged or cut off"},
	} {
		if _, _, err := Verify(bytes.NewReader(c.file), c.with); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
	if err := Write(io.Discard, nil, content(), seq()); err == nil || !strings.Contains(err.Error(), "nobody could open it") {
		t.Errorf("no recipient: %v", err)
	}
}

// server is a state with something in it.
func server(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir, Cluster: "demo", Log: os.Stderr, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Secret(t.Context(), "ca", func() ([]byte, error) { return []byte("the CA's key"), nil }, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// keeper saves a state into a directory, at times that the test says.
type keeper struct {
	*Keeper
	dir string
	id  *age.X25519Identity
	now atomic.Int64 // minutes since noon
}

func newKeeper(t *testing.T, s *store.Store, dir string) *keeper {
	t.Helper()
	k := &keeper{dir: dir, id: key(t)}
	var err error
	k.Keeper, err = NewKeeper(k.config(s))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *keeper) config(s *store.Store) Config {
	return Config{
		Header: Header{Cluster: "demo", Program: "test", Servers: []string{"https://10.0.0.1:8443"}}, Store: s, Dir: k.dir, Every: time.Hour, Keep: 3,
		Recipients: []age.Recipient{k.id.Recipient()}, Now: func() time.Time { return noon.Add(time.Duration(k.now.Load()) * time.Minute) }, Log: slog.New(slog.DiscardHandler),
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestTheNewestBackupsStayAndNothingElseIsTouched(t *testing.T) {
	t.Parallel()
	s := server(t, t.TempDir())
	defer s.Close()
	dir := t.TempDir()
	other := files.Name("demo2", noon)
	torn := ".partial-" + files.Name("demo", noon) + "-123"
	for _, name := range []string{"notes.txt", other, torn, ".partial-" + other + "-9"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k := newKeeper(t, s, dir)
	for i := range 5 {
		k.now.Store(int64(i))
		f, err := k.Save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := k.State().Good; got != f || f.Size == 0 {
			t.Errorf("the newest good one is %v, saved was %v", got, f)
		}
	}
	want := []string{".partial-" + other + "-9"}
	for i := 2; i < 5; i++ {
		want = append(want, files.Name("demo", noon.Add(time.Duration(i)*time.Minute)))
	}
	want = append(want, other, "notes.txt")
	slices.Sort(want)
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}

	// A new process finds the newest that is good, not the newest.
	newest := filepath.Join(dir, files.Name("demo", noon.Add(4*time.Minute)))
	if err := os.Truncate(newest, 300); err != nil {
		t.Fatal(err)
	}
	again, err := NewKeeper(k.config(s))
	if err != nil {
		t.Fatal(err)
	}
	if got := again.State().Good.Name; got != files.Name("demo", noon.Add(3*time.Minute)) {
		t.Errorf("found %s", got)
	}
}

// A clock that was once ahead leaves names that are newer than all that come.
func TestABackupIsNotRemovedForOnesOfTheFuture(t *testing.T) {
	t.Parallel()
	s := server(t, t.TempDir())
	defer s.Close()
	dir := t.TempDir()
	for i := range 4 {
		if err := os.WriteFile(filepath.Join(dir, files.Name("demo", noon.AddDate(10, 0, i))), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k := newKeeper(t, s, dir)
	f, err := k.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{f.Name, files.Name("demo", noon.AddDate(10, 0, 2)), files.Name("demo", noon.AddDate(10, 0, 3))}
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestAFailedBackupIsSeen(t *testing.T) {
	t.Parallel()
	s := server(t, t.TempDir())
	defer s.Close()
	dir := filepath.Join(t.TempDir(), "not-mounted")
	k := newKeeper(t, s, dir)
	if _, err := k.Save(t.Context()); err == nil || !strings.Contains(err.Error(), "make the directory, and let imagectl serve write there") {
		t.Errorf("got %v", err)
	}
	if st := k.State(); st.Failed == nil || !st.Late(noon) || st.due(noon) != retry {
		t.Errorf("got %+v, due %s", st, st.due(noon))
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	st := k.State()
	for _, c := range []struct {
		at   time.Duration
		late bool
		due  time.Duration
	}{
		{0, false, time.Hour},
		{20 * time.Minute, false, 40 * time.Minute},
		{2 * time.Hour, false, 0},
		{2*time.Hour + 1, true, 0},
		{-24 * time.Hour, false, time.Hour}, // the clock was set back
	} {
		if got := st.due(noon.Add(c.at)); got != c.due || st.Late(noon.Add(c.at)) != c.late || st.Failed != nil {
			t.Errorf("after %s: due in %s, late %v, %v; want %s, %v", c.at, got, st.Late(noon.Add(c.at)), st.Failed, c.due, c.late)
		}
	}
	// A check that fails leaves what was there.
	before := names(t, dir)
	_, err := files.Save(dir, files.Name("demo", noon.Add(time.Hour)), func(w io.Writer) error { _, err := w.Write([]byte("x")); return err }, func(io.Reader) error { return errors.New("bad") })
	if err == nil || err.Error() != "reading the backup that was just written: bad" || !slices.Equal(before, names(t, dir)) {
		t.Errorf("got %v, %v", err, names(t, dir))
	}
}

func TestRunSavesWhenOneIsDue(t *testing.T) {
	t.Parallel()
	s := server(t, t.TempDir())
	defer s.Close()
	dir := t.TempDir()
	k := newKeeper(t, s, dir)
	saved := make(chan struct{})
	k.cfg.Log = slog.New(slog.NewTextHandler(closing{saved}, nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	<-saved // the first one is due at once
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{files.Name("demo", noon)}) {
		t.Errorf("got %v", got)
	}
}

// closing closes a channel at the first write.
type closing struct{ c chan struct{} }

func (c closing) Write(p []byte) (int, error) {
	close(c.c)
	return len(p), nil
}
