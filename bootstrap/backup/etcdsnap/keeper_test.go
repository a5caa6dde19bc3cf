package etcdsnap

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

func TestASnapshotIsSavedAndOthersReadIt(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.rest()
	r.logged("saved cp2 at 299", "checked cp2: <nil>")
	name := files.Etcd.Name("demo", noon)
	if got := r.names(); !slices.Equal(got, []string{name, name + ManifestEnd}) {
		t.Fatalf("there is %v", got)
	}
	m, err := r.manifest(name)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(r.source.content)
	if m.Machine != "cp2" || m.Member != "abc" || m.Revision != 299 || !m.At.Equal(noon) || m.Size != int64(len(r.source.content)) || m.SHA256 != fmt.Sprintf("%x", sum) {
		t.Errorf("the manifest says %+v", m)
	}
	cas := []*x509.Certificate{r.source.ca.Certificate()}
	if err := m.Check(cas, "demo", name); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Manifest){
		"another revision": func(m *Manifest) { m.Revision++ },
		"another digest":   func(m *Manifest) { m.SHA256 = strings.Repeat("0", 64) },
		"another size":     func(m *Manifest) { m.Size++ },
		"another member":   func(m *Manifest) { m.Member = "def" },
		"another machine":  func(m *Manifest) { m.Machine = "cp1" },
		"another time":     func(m *Manifest) { m.At = m.At.Add(time.Hour) },
		"another file":     func(m *Manifest) { m.FileSHA256 = strings.Repeat("0", 64) },
		"another name":     func(m *Manifest) { m.Name = files.Etcd.Name("demo", noon.Add(time.Hour)) },
		"another cluster":  func(m *Manifest) { m.Cluster = "prod" },
		"no signature":     func(m *Manifest) { m.Signature = nil },
	} {
		changed := m
		change(&changed)
		if err := changed.Check(cas, "demo", name); err == nil {
			t.Errorf("%s is taken for the server's", what)
		}
	}
	// With the recovery key and the tool of another hand, what comes is what the member sent.
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(r.recovery.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command("age", "-d", "-i", key, filepath.Join(r.dir, name)).Output()
	if err != nil || !bytes.Equal(got, r.source.content) {
		t.Errorf("age gives %d bytes of %d: %v", len(got), len(r.source.content), err)
	}
	if b, err := os.ReadFile(filepath.Join(r.dir, name)); err != nil || bytes.Contains(b, []byte("vvvvvvvv")) {
		t.Errorf("what is on the disk can be read: %v", err)
	}
	r.now = noon.Add(6*time.Hour - time.Second)
	r.rest()
	r.logged()
	r.now = noon.Add(6 * time.Hour)
	r.rest()
	r.logged("saved cp2 at 299", "checked cp2: <nil>")
	if all, problems := r.List(t.Context()); len(all) != 2 || len(problems) > 0 || !all[0].At.Equal(r.now) || all[0].Manifest.Revision != 299 || !all[0].InDirectory || all[0].InCopies {
		t.Errorf("listed: %+v, %v", all, problems)
	}
}

// Whatever goes wrong, there is no file; the next attempt is of another member.
func TestAttemptsThatFail(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		set  func(*rig)
		want string
	}{
		"the member's machine dies":     {func(r *rig) { r.source.during = func() error { return errors.New("connection reset") } }, "failed cp2: connection reset"},
		"the member stands still":       {func(r *rig) { r.source.holds = true; r.cfg.Stall = 20 * time.Millisecond }, "failed cp2: cp2 has sent nothing for 20ms"},
		"the member never answers":      {func(r *rig) { r.source.mute = true; r.cfg.Stall = 20 * time.Millisecond }, "failed cp2: cp2 has sent nothing for 20ms"},
		"it is cut off":                 {func(r *rig) { r.source.content = r.source.content[:len(r.source.content)-512] }, "failed cp2: it is no whole snapshot of etcd: the digest at its end does not fit (%d bytes of cp2)"},
		"a bit of it is changed":        {func(r *rig) { r.source.content[9000] ^= 1 }, "failed cp2: it is no whole snapshot of etcd: the digest at its end does not fit (%d bytes of cp2)"},
		"it is larger than it may be":   {func(r *rig) { r.cfg.Max = 1000 }, "failed cp2: the snapshot of cp2 has more than 1000 bytes, the most that a restore takes"},
		"nobody confirms its revision":  {func(r *rig) { r.source.revision = 0 }, "failed cp2: cp2 does not say which revision its snapshot has; its agent is older than this server"},
		"the directory is not writable": {func(r *rig) { r.cfg.Dir = filepath.Join(r.dir, "gone") }, ""},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			r.rest()
			r.logged("saved cp2 at 299", "checked cp2: <nil>")
			good := r.State().Good
			r.now = noon.Add(6 * time.Hour)
			content, cfg := slices.Clone(r.source.content), r.cfg
			c.set(r)
			r.rest()
			want := c.want
			if strings.Contains(want, "%d") {
				want = fmt.Sprintf(want, len(r.source.content))
			}
			if want != "" {
				r.logged(want)
			}
			s := r.State()
			if s.Good.Name != good.Name || s.Failed == nil || s.Failures != 1 || s.Total != 1 {
				t.Errorf("it stands %+v", s)
			}
			if got := r.names(); !slices.Equal(got, []string{good.Name, good.Name + ManifestEnd}) {
				t.Errorf("there is %v", got)
			}
			r.source.content, r.source.during, r.source.holds, r.source.mute, r.source.revision, r.cfg = content, nil, false, false, 299, cfg
			r.source.log = nil
			r.now = r.now.Add(firstRetry)
			r.rest()
			r.logged("saved cp3 at 299", "checked cp3: <nil>")
			if s := r.State(); s.Failed != nil || s.Failures != 0 || s.Total != 1 {
				t.Errorf("it stands %+v", s)
			}
		})
	}
}

func TestNoneIsTakenNow(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.source.notNow = "cp3 joins etcd first"
	if wait := r.step(t.Context()); wait != again {
		t.Errorf("it looks again after %s", wait)
	}
	if s := r.State(); s.Failures != 0 || s.Failed != nil || !strings.HasSuffix(s.Waiting, "cp3 joins etcd first") {
		t.Errorf("it stands %+v", s)
	}
	r.source.notNow = ""
	r.rest()
	r.logged("saved cp2 at 299", "checked cp2: <nil>")
	if s := r.State(); s.Waiting != "" {
		t.Errorf("it stands %+v", s)
	}
}

// The digest at the end of a snapshot fits, for the member has made it over pages that are damaged.
func TestABrokenSnapshotIsSetAside(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	whole := r.source.content
	r.rest()
	good := r.State().Good
	r.logged("saved cp2 at 299", "checked cp2: <nil>")
	for i := range 2 {
		db := slices.Clone(whole[:len(whole)-sha256.Size])
		page := os.Getpagesize()
		clear(db[4*page : 6*page])
		r.source.content = sealed(db)
		r.now = r.now.Add(6 * time.Hour)
		bad := files.Etcd.Name("demo", r.now)
		if wait := r.step(t.Context()); wait != 0 {
			t.Fatal(wait)
		}
		if r.State().Good.Name != bad {
			t.Fatalf("it stands %+v", r.State())
		}
		r.rest()
		if len(r.source.log) != 2 || !strings.Contains(r.source.log[1], "the database in the snapshot is not whole: ") {
			t.Fatalf("on record: %q", r.source.log)
		}
		s := r.State()
		if s.Good.Name != good.Name || s.Broken == "" || s.Failures != i+1 || s.Checked != good.Name {
			t.Errorf("it stands %+v", s)
		}
		// It does not take the good one's place, and no more than one broken one is kept.
		if got := r.names(); !slices.Equal(got, []string{good.Name, good.Name + ManifestEnd, bad + brokenEnd, bad + ManifestEnd}) {
			t.Errorf("there is %v", got)
		}
		r.source.log = nil
		if i == 0 {
			r.source.machines = []string{"cp2"}
		}
	}
	r.source.content, r.source.machines = whole, []string{"cp2", "cp3"}
	r.now = r.now.Add(lastRetry)
	r.rest()
	r.logged("saved cp3 at 299", "checked cp3: <nil>")
	if s := r.State(); s.Broken != "" || s.Failed != nil {
		t.Errorf("it stands %+v", s)
	}
}

func TestASnapshotThatEndsBeforeItsRevisionIsBroken(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.source.revision = 301
	r.rest()
	if s := r.State(); !strings.Contains(s.Broken, "it ends at revision 300, and the member had 301") || s.Good.Name != "" {
		t.Errorf("it stands %+v", s)
	}
}

func TestOldSnapshotsGo(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var want []string
	for i := range 5 {
		r.now = noon.Add(time.Duration(i) * 6 * time.Hour)
		r.rest()
		if i >= 2 {
			name := files.Etcd.Name("demo", r.now)
			want = append(want, name, name+ManifestEnd)
		}
	}
	if got := r.names(); !slices.Equal(got, want) {
		t.Errorf("there is\n%v\nwant\n%v", got, want)
	}
	// What a server left behind that was killed goes with the next one; what is somebody else's stays.
	orphan, other := files.Etcd.Name("demo", noon)+ManifestEnd, files.Etcd.Name("prod", noon)+ManifestEnd
	for _, name := range []string{orphan, other, "notes.txt", ".partial-" + files.Etcd.Name("demo", noon) + "-77"} {
		if err := os.WriteFile(filepath.Join(r.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.now = noon.Add(30 * time.Hour)
	r.rest()
	got := r.names()
	if slices.Contains(got, orphan) || !slices.Contains(got, other) || !slices.Contains(got, "notes.txt") || len(got) != 8 {
		t.Errorf("there is %v", got)
	}
}

// A server that begins finds what is good, and forgets whose turn it was; while another one leads, it
// does nothing, and what it has begun ends.
func TestOneServerTakesThem(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.rest()
	first := r.State().Good
	r.now = noon.Add(6 * time.Hour)
	r.rest()
	second := r.State().Good
	r.source.log = nil
	if err := os.WriteFile(filepath.Join(r.dir, second.Name), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := New(r.cfg, r.source)
	if err != nil {
		t.Fatal(err)
	}
	r.Keeper = next
	r.source.saving = "cp3" // by one that was killed
	r.source.hand(true)
	if wait := r.step(t.Context()); wait != idle {
		t.Errorf("it comes again after %s", wait)
	}
	r.logged()
	r.source.hand(false)
	r.now = noon.Add(5 * time.Hour)
	r.rest()
	r.logged("forgotten cp3", "checked cp2: <nil>")
	if s := r.State(); s.Good.Name != first.Name {
		t.Errorf("it stands %+v", s)
	}
	r.now = noon.Add(12 * time.Hour)
	r.source.holds = true
	r.source.during = func() error { r.source.hand(true); return nil }
	r.step(t.Context())
	r.logged("failed cp2: context canceled")
}

func TestCopiesGoElsewhere(t *testing.T) {
	t.Parallel()
	s := &shelf{files: map[string][]byte{}}
	r := newRig(t, func(c *Config) { c.Copies = s })
	for i := range 4 {
		r.now = noon.Add(time.Duration(i) * 6 * time.Hour)
		r.rest()
	}
	if len(s.files) != 6 || s.files[files.Etcd.Name("demo", noon)] != nil {
		t.Errorf("there are %d files", len(s.files))
	}
	for name, b := range s.files {
		if own, err := os.ReadFile(filepath.Join(r.dir, name)); err != nil || !bytes.Equal(own, b) {
			t.Errorf("the copy of %s is another: %v", name, err)
		}
	}
	good := r.State().Copied
	s.full = true
	r.now = noon.Add(24 * time.Hour)
	r.rest()
	if st := r.State(); st.Copied != good || st.CopyFailed == nil || st.Failed != nil {
		t.Errorf("a full place: %+v", st)
	}
	s.full, s.torn = false, true
	r.now = r.now.Add(copyRetry)
	r.rest()
	if st := r.State(); st.Copied != good || !strings.Contains(fmt.Sprint(st.CopyFailed), "its SHA-256 is") {
		t.Errorf("a copy that is torn: %+v", st)
	}
	s.torn = false
	r.now = r.now.Add(copyRetry)
	r.rest()
	if st := r.State(); st.Copied != st.Good.Name || st.CopyFailed != nil {
		t.Errorf("in the end: %+v", st)
	}
	if all, problems := r.List(t.Context()); len(all) != 3 || len(problems) > 0 || !all[0].InCopies || !all[0].InDirectory {
		t.Errorf("listed: %+v %v", all, problems)
	}
}

// Every byte of a snapshot that is changed or cut off is noticed when it is read.
func TestAChangedSnapshotIsNotRead(t *testing.T) {
	t.Parallel()
	whole := database(t, 3)
	try := func(what string, b []byte) {
		if _, err := ReadWhole(bytes.NewReader(b)); !errors.Is(err, ErrNotWhole) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for i := 0; i < len(whole); i += 97 {
		b := slices.Clone(whole)
		b[i] ^= 1
		try(fmt.Sprintf("byte %d changed", i), b)
		try(fmt.Sprintf("cut at %d", i), whole[:i])
	}
	if tr, err := ReadWhole(bytes.NewReader(whole)); err != nil || tr.Size() != int64(len(whole)) {
		t.Error(err)
	}
}
