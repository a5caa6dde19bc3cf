package bundle_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/images/bundle"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
)

// fixture is a site with two small inputs, one of them named twice.
func fixture(t testing.TB) (*store.Store, bundle.Site, string) {
	t.Helper()
	s := openStore(t)
	var inputs []lock.Blob
	for id, content := range map[lock.ID]string{"agent/bootstrapd": "agent\n", "addons/a": "kind: A\n", "addons/b": "kind: A\n"} {
		b, err := s.Put(context.Background(), []byte(content))
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, lock.Blob{ID: id, Source: "https://example.org/" + string(id), SHA256: b.SHA256, Size: b.Size})
	}
	l, err := lock.New(strings.Repeat("0", 64), inputs)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "imagectl")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return s, bundle.Site{Cluster: "prod/cluster.yaml", Files: []bundle.File{
		{Name: "prod/cluster.yaml", Content: []byte("extends: ../base.yaml\n")},
		{Name: "prod/imagectl.lock", Content: encoded},
		{Name: "prod/tree/run", Content: []byte("#!/bin/sh\n"), Executable: true},
		{Name: "base.yaml", Content: bytes.Repeat([]byte("x"), 512)},
	}}, program
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t testing.TB) []byte {
	t.Helper()
	s, site, program := fixture(t)
	var out bytes.Buffer
	if _, err := bundle.Write(context.Background(), &out, s, site, program, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func read(in io.Reader, s *store.Store) (bundle.Site, error) {
	b, err := bundle.Open(in)
	if err != nil {
		return bundle.Site{}, err
	}
	return b.Site, b.Receive(context.Background(), s, nil)
}

func TestWhatIsWrittenComesBack(t *testing.T) {
	t.Parallel()
	s, site, program := fixture(t)
	var out bytes.Buffer
	sums, err := bundle.Write(context.Background(), &out, s, site, program, nil)
	if err != nil {
		t.Fatal(err)
	}
	far := openStore(t)
	var seen []string
	b, err := bundle.Open(iotest.OneByteReader(bytes.NewReader(out.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Receive(context.Background(), far, func(what string, done, total int64) {
		if done == total {
			seen = append(seen, what)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if b.Sums != sums {
		t.Errorf("got sums %s, want %s", b.Sums, sums)
	}
	want := site
	want.Files = []bundle.File{site.Files[3], site.Files[0], site.Files[1], site.Files[2]}
	if diff := cmp.Diff(b.Site, want); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
	l, err := lock.Parse(site.Files[1].Content)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range l.Inputs {
		if err := far.Verify(context.Background(), in.SHA256); err != nil {
			t.Error(err)
		}
	}
	if len(seen) != 3 || seen[0] != "bin/imagectl" {
		t.Errorf("got progress on %q, want the program and two inputs", seen)
	}
}

func TestTheSameContentGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	if !bytes.Equal(write(t), write(t)) {
		t.Error("two bundles of the same content differ")
	}
}

// Every byte of a bundle means something, so none may change unnoticed; and
// whatever was in the store before the damage was found is whole.
func TestAFlippedBitAnywhereIsRefused(t *testing.T) {
	t.Parallel()
	good := write(t)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if _, err := read(bytes.NewReader(bad), nil); !errors.Is(err, bundle.ErrDamaged) {
			t.Fatalf("byte %d of %d: got error %v, want ErrDamaged", i, len(good), err)
		}
	}
}

func TestATruncatedBundleIsRefused(t *testing.T) {
	t.Parallel()
	good := write(t)
	for n := range good {
		if _, err := read(bytes.NewReader(good[:n]), nil); !errors.Is(err, bundle.ErrDamaged) {
			t.Fatalf("%d of %d bytes: got error %v, want ErrDamaged", n, len(good), err)
		}
	}
	dir := t.TempDir()
	s, err := store.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The last input is cut off: the one before it stays, and nothing of the last.
	if _, err := read(bytes.NewReader(good[:len(good)-3*512+3]), s); err == nil || !strings.Contains(err.Error(), "it ends early; copy it again") {
		t.Errorf("got error %v", err)
	}
	if got := files(t, dir, ".lock"); len(got) != 1 || !strings.HasPrefix(got[0], "blobs/sha256/") {
		t.Errorf("got %q in the store, want one whole input", got)
	}
	if _, err := read(bytes.NewReader(good), s); err != nil {
		t.Error(err)
	}
}

func files(t *testing.T, dir, without string) []string {
	t.Helper()
	var out []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(name, without) {
			out = append(out, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// An input that is in the store is not written again, but still compared.
func TestWhatIsThereIsNotWrittenAgain(t *testing.T) {
	t.Parallel()
	good := write(t)
	dir := t.TempDir()
	s, err := store.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(bytes.NewReader(good), s); err != nil {
		t.Fatal(err)
	}
	stamps := func() map[string]string {
		out := map[string]string{}
		for _, name := range files(t, dir, ".lock") {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			out[name] = st.ModTime().String()
		}
		return out
	}
	before := stamps()
	if _, err := read(bytes.NewReader(good), s); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(stamps(), before); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
	bad := bytes.Clone(good)
	bad[len(bad)-3*512] ^= 1
	if _, err := read(bytes.NewReader(bad), s); !errors.Is(err, bundle.ErrDamaged) {
		t.Errorf("got error %v, want ErrDamaged", err)
	}
}

// entry is a member of a bundle that somebody made by hand.
type entry struct {
	name, content string
	link          string
	typ           byte
	mode          int64
}

// rewrite takes a bundle apart, lets change have its members, and packs them
// again with ordinary tools, with sums that fit when resum is set.
func rewrite(t *testing.T, change func([]entry) []entry, resum bool) []byte {
	t.Helper()
	var all []entry
	for r := tar.NewReader(bytes.NewReader(write(t))); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry{name: h.Name, content: string(b), typ: h.Typeflag, mode: h.Mode})
	}
	all = change(all)
	if resum {
		all[0].content = ""
		for _, e := range all[1:] {
			s := sha256.Sum256([]byte(e.content))
			all[0].content += hex.EncodeToString(s[:]) + "  " + e.name + "\n"
		}
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range all {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Size: int64(len(e.content)), Mode: e.mode, ModTime: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestRewritingWithoutAChangeIsAccepted(t *testing.T) {
	t.Parallel()
	same := rewrite(t, func(e []entry) []entry { return e }, true)
	if !bytes.Equal(same, write(t)) {
		t.Error("the helper of the tests below does not give what Write gives")
	}
	if _, err := read(bytes.NewReader(same), openStore(t)); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoBundleIsRefused(t *testing.T) {
	t.Parallel()
	at := func(name string, f func(*entry)) func([]entry) []entry {
		return func(all []entry) []entry {
			for i := range all {
				if all[i].name == name {
					f(&all[i])
					return all
				}
			}
			t.Errorf("the fixture has no %s", name)
			return all
		}
	}
	add := func(e entry) func([]entry) []entry {
		return func(all []entry) []entry { return append(all, e) }
	}
	surplus := entry{name: "blobs/sha256/" + strings.Repeat("0", 64), content: "x", typ: tar.TypeReg, mode: 0o644}
	for name, tc := range map[string]struct {
		change func([]entry) []entry
		resum  bool
		want   string
	}{
		"a member that is not listed": {add(surplus), false, `there is a member "blobs/sha256/000`},
		"a member with a wrong name":  {add(surplus), true, "is listed with sha256"},
		"an input that is not locked": {
			func(all []entry) []entry {
				s := sha256.Sum256([]byte("x"))
				return append(all, entry{name: "blobs/sha256/" + hex.EncodeToString(s[:]), content: "x", typ: tar.TypeReg, mode: 0o644})
			}, true, "is no input of the lock",
		},
		"a stray file":                   {add(entry{name: "README", typ: tar.TypeReg, mode: 0o644}), true, "member README is in the wrong place"},
		"a missing member":               {func(all []entry) []entry { return all[:len(all)-1] }, false, "it ends before member blobs/sha256/"},
		"a missing input":                {func(all []entry) []entry { return all[:len(all)-1] }, true, "is locked and missing"},
		"a missing lock":                 {func(all []entry) []entry { return append(all[:4:4], all[5:]...) }, true, "the lock file prod/imagectl.lock is not in it"},
		"a member in the wrong place":    {func(all []entry) []entry { all[2], all[3] = all[3], all[2]; return all }, false, `member "site/prod/cluster.yaml" stands where site/base.yaml should be`},
		"a path that climbs":             {at("site/base.yaml", func(e *entry) { e.name = "site/../../etc/cron.d/x" }), true, `name "site/../../etc/cron.d/x" is not a relative path without dots`},
		"a path that climbs, not listed": {at("site/base.yaml", func(e *entry) { e.name = "site/../../x" }), false, `member "site/../../x" stands where site/base.yaml should be`},
		"an absolute path":               {at("site/base.yaml", func(e *entry) { e.name = "/etc/passwd" }), true, "is not a relative path"},
		"a path of another system":       {at("site/base.yaml", func(e *entry) { e.name = `site/..\x` }), true, `has the character '\\'`},
		"a symbolic link":                {at("site/base.yaml", func(e *entry) { e.typ, e.link, e.content = tar.TypeSymlink, "/etc/passwd", "" }), true, `member "site/base.yaml" is a symbolic link, want the file site/base.yaml`},
		"a hard link":                    {at("site/base.yaml", func(e *entry) { e.typ, e.link, e.content = tar.TypeLink, "x", "" }), true, "is a hard link"},
		"a directory":                    {at("site/base.yaml", func(e *entry) { e.typ, e.content = tar.TypeDir, "" }), true, "is a directory"},
		"another mode":                   {at("site/base.yaml", func(e *entry) { e.mode = 0o4755 }), true, "the header of member site/base.yaml has another mode, owner or time"},
		"a name that is given twice":     {at("site/base.yaml", func(e *entry) { e.name = "bundle.json" }), true, "bundle.json is in it twice"},
		"a file that is a directory":     {at("site/base.yaml", func(e *entry) { e.name = "site/prod" }), true, "site/prod is both a file and the directory of"},
		"a version from the future":      {at("bundle.json", func(e *entry) { e.content = `{"version":2,"more":true}` }), true, "its format has version 2, this imagectl knows 1"},
		"an unknown key":                 {at("bundle.json", func(e *entry) { e.content = `{"version":1,"more":true}` }), true, `unknown field "more"`},
		"another way to write JSON":      {at("bundle.json", func(e *entry) { e.content += " " }), true, "bundle.json is written otherwise"},
		"files in another order": {func(all []entry) []entry {
			all[2], all[3] = all[3], all[2]
			return all
		}, true, "site/base.yaml is in the wrong place"},
		"a lock that is none": {at("site/prod/imagectl.lock", func(e *entry) { e.content = "<<<<" }), true, "reading prod/imagectl.lock"},
		"no cluster file":     {at("bundle.json", func(e *entry) { e.content = strings.Replace(e.content, "prod/cluster.yaml", "x", 1) }), true, "the cluster file x is not in it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s, err := store.Open(dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = read(bytes.NewReader(rewrite(t, tc.change, tc.resum)), s)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
			for _, name := range files(t, dir, ".lock") {
				if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); !ok || s.Verify(context.Background(), filepath.Base(digest)) != nil {
					t.Errorf("the store has %s", name)
				}
			}
		})
	}
	for name, in := range map[string][]byte{"nothing": nil, "text": []byte("hello"), "zeros": make([]byte, 10240), "a byte too many": append(write(t), 0)} {
		if _, err := read(bytes.NewReader(in), nil); !errors.Is(err, bundle.ErrDamaged) {
			t.Errorf("%s: got error %v, want ErrDamaged", name, err)
		}
	}
}

func TestWriteRefusesWhatCannotBeCarried(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*bundle.Site)
		want   string
	}{
		"a name that is not ASCII": {func(s *bundle.Site) { s.Files[3].Name = "bäse.yaml" }, "a bundle takes plain ASCII names"},
		"a name with a line break": {func(s *bundle.Site) { s.Files[3].Name = "a\nb" }, `has the character '\n'`},
		"a name that climbs":       {func(s *bundle.Site) { s.Files[3].Name = "../base.yaml" }, "is not a relative path"},
		"a name that is too long":  {func(s *bundle.Site) { s.Files[3].Name = strings.Repeat("x", 200) }, "does not fit into a ustar header"},
		"a file that is too large": {func(s *bundle.Site) { s.Files[3].Content = make([]byte, bundle.MaxFile+1) }, "16777217 bytes"},
		"no lock":                  {func(s *bundle.Site) { s.Files[1].Name = "x" }, "the lock file prod/imagectl.lock is not in it"},
	} {
		s, site, _ := fixture(t)
		tc.change(&site)
		if _, err := bundle.Write(context.Background(), io.Discard, s, site, "", nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got error %v, want one with %q", name, err, tc.want)
		}
	}
	s, site, _ := fixture(t)
	l, err := lock.Parse(site.Files[1].Content)
	if err != nil {
		t.Fatal(err)
	}
	path := s.Path(l.Inputs[0].SHA256)
	if err := errors.Join(os.Remove(path), os.WriteFile(path, make([]byte, l.Inputs[0].Size), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Write(context.Background(), io.Discard, s, site, "", nil); err == nil || !strings.Contains(err.Error(), "it was damaged: delete it") {
		t.Errorf("an input that rotted in the cache: got error %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Write(context.Background(), io.Discard, s, site, "", nil); err == nil || !strings.Contains(err.Error(), "the cache lacks addons/a") {
		t.Errorf("an input that is gone: got error %v", err)
	}
}

func TestAnEndedContextEndsIt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s, site, program := fixture(t)
	if _, err := bundle.Write(ctx, io.Discard, s, site, program, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("writing: got error %v", err)
	}
	b, err := bundle.Open(bytes.NewReader(write(t)))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Receive(ctx, openStore(t), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("reading: got error %v", err)
	}
}

// FuzzRead wants that nothing is accepted but what Write would have written.
func FuzzRead(f *testing.F) {
	good := write(f)
	f.Add(good)
	f.Add(good[:1024])
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := store.Open(t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		site, err := read(bytes.NewReader(in), s)
		if err != nil {
			return
		}
		program := ""
		if i := bytes.Index(in, []byte("bin/imagectl\x00")); i >= 0 {
			var size int64
			if _, err := fmt.Sscanf(string(in[i+124:i+135]), "%o", &size); err != nil {
				t.Fatal(err)
			}
			program = filepath.Join(t.TempDir(), "p")
			if err := os.WriteFile(program, in[i+512:int64(i)+512+size], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		if _, err := bundle.Write(context.Background(), &out, s, site, program, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), in) {
			t.Error("a bundle was accepted that Write would have written otherwise")
		}
	})
}
