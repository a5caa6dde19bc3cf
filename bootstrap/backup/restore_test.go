package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// TestMain lets this program be a restore or a backup that is killed.
func TestMain(m *testing.M) {
	switch os.Getenv("LIFE") {
	case "restore":
		if _, err := Restore(context.Background(), childConfig()); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	case "save":
		if err := childSaves(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// childSaves makes one backup after the other until it is killed, and says when the
// first one is there.
func childSaves() error {
	c := childConfig()
	s, err := store.Open(context.Background(), store.Config{Dir: c.State, Cluster: "demo", Log: os.Stderr, Volatile: true})
	if err != nil {
		return err
	}
	k, err := NewKeeper(Config{
		Header: Header{Cluster: "demo"}, Store: s, Dir: c.From, Every: time.Hour, Keep: 5,
		Recipients: []age.Recipient{c.Identities[0].(*age.X25519Identity).Recipient()}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		if _, err := k.Save(context.Background()); err != nil {
			return err
		}
		if first {
			os.Stdout.WriteString("saved\n")
		}
	}
}

func childConfig() RestoreConfig {
	id, err := age.ParseX25519Identity(os.Getenv("LIFE_KEY"))
	if err != nil {
		panic(err)
	}
	return RestoreConfig{From: os.Getenv("LIFE_FROM"), State: os.Getenv("LIFE_STATE"), Identities: []age.Identity{id}, Now: noon, Log: os.Stderr, Volatile: true}
}

// saved is a directory with a backup, and the key to it.
func saved(t *testing.T, leases string) (dir string, id *age.X25519Identity) {
	t.Helper()
	state := t.TempDir()
	s := server(t, state)
	defer s.Close()
	k := newKeeper(t, s, t.TempDir())
	if leases != "" {
		k.cfg.Leases, k.cfg.Leases6 = filepath.Join(state, LeasesFile), filepath.Join(state, Leases6File)
		for path, text := range map[string]string{k.cfg.Leases: leases, k.cfg.Leases6: "6 " + leases} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := k.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k.dir, k.id
}

// whole says whether a state directory is one that a server can run on.
func whole(t *testing.T, state string) bool {
	t.Helper()
	if names, err := os.ReadDir(state); os.IsNotExist(err) || err == nil && len(names) == 0 {
		return false
	}
	s, err := store.Open(t.Context(), store.Config{Dir: state, Cluster: "demo", Log: os.Stderr, Volatile: true})
	if err != nil {
		t.Fatalf("%s is there, and is no state: %v", state, err)
	}
	defer s.Close()
	got, err := s.Secret(t.Context(), "ca", nil, nil)
	if err != nil || string(got) != "the CA's key" {
		t.Fatalf("the secret: %q, %v", got, err)
	}
	values, err := s.Values(t.Context(), "restored")
	var m Mark
	if err != nil || json.Unmarshal(values[""], &m) != nil || !m.At.Equal(noon) || m.Settled {
		t.Fatalf("the mark: %s, %v", values, err)
	}
	return true
}

func TestRestoreMakesAStateOutOfTheNewestBackup(t *testing.T) {
	t.Parallel()
	dir, id := saved(t, "{}\n")
	state := filepath.Join(t.TempDir(), "deep", "state")
	r, err := Restore(t.Context(), RestoreConfig{From: dir, State: state, Identities: []age.Identity{key(t), id}, Now: noon, Log: os.Stderr, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Header.Cluster != "demo" || r.Records == 0 || !slices.Equal(r.Header.Servers, []string{"https://10.0.0.1:8443"}) || r.File != filepath.Join(dir, files.Name("demo", noon)) {
		t.Errorf("got %+v", r)
	}
	if !whole(t, state) {
		t.Error("there is no state")
	}
	for name, want := range map[string]string{LeasesFile: "{}\n", Leases6File: "6 {}\n"} {
		if leases, err := os.ReadFile(filepath.Join(state, name)); err != nil || string(leases) != want {
			t.Errorf("the leases in %s: %q, %v", name, leases, err)
		}
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "identity.age": 0o600, "leases": 0o600, "leases6": 0o600} {
		if info, err := os.Stat(filepath.Join(state, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}

	// An empty directory, as systemd makes it, is fine; what is made out of a restored
	// state has one mark.
	empty := t.TempDir()
	if _, err := Restore(t.Context(), RestoreConfig{From: r.File, State: empty, Identities: []age.Identity{id}, Now: noon, Log: os.Stderr, Volatile: true}); err != nil || !whole(t, empty) {
		t.Error(err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	dir, id := saved(t, "")
	file := filepath.Join(dir, files.Name("demo", noon))
	full, two, none, torn := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	for _, name := range []string{filepath.Join(full, "identity.age"), filepath.Join(two, files.Name("a", noon)), filepath.Join(two, files.Name("b", noon))} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for at, content := range map[time.Time][]byte{noon: b, noon.Add(time.Hour): b[:len(b)-1]} {
		if err := os.WriteFile(filepath.Join(torn, files.Name("demo", at)), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, from, state string
		with              age.Identity
		want              string
	}{
		{"a state that is there", file, full, id, full + " is not empty (identity.age, …): a state that is there is never overwritten"},
		{"a directory without backups", none, "", id, "there is none in " + none},
		{"backups of two clusters", two, "", id, two + " holds backups of the clusters"},
		{"what is not there", file + "x", "", id, "no such file or directory"},
		{"another key", file, "", key(t), "it is not encrypted to this key"},
		{"the newest is cut off", torn, "", id, "it is damaged or cut off: failed to decrypt and authenticate payload chunk, file may be corrupted or tampered with\nthe one before it is " + filepath.Join(torn, files.Name("demo", noon)) + ", of 2026-05-01T12:00:00Z"},
	} {
		state := c.state
		if state == "" {
			state = filepath.Join(t.TempDir(), "state")
		}
		_, err := Restore(t.Context(), RestoreConfig{From: c.from, State: state, Identities: []age.Identity{c.with}, Now: noon, Log: os.Stderr, Volatile: true})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
		if left, _ := filepath.Glob(state + "*"); c.state == "" && len(left) > 0 {
			t.Errorf("%s: it left %v", c.name, left)
		}
	}
}

// Wherever the kill comes, what has the name of a backup is one.
func TestABackupIsKilled(t *testing.T) {
	t.Parallel()
	dir, state, id := t.TempDir(), t.TempDir(), key(t)
	server(t, state).Close()
	for i := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Env = append(os.Environ(), "LIFE=save", "LIFE_FROM="+dir, "LIFE_STATE="+state, "LIFE_KEY="+id.String())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * time.Millisecond) // any moment will do
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		all, err := files.List(dir)
		if err != nil || len(all) == 0 || len(all) > 6 {
			t.Fatalf("%d backups, %v", len(all), err)
		}
		for _, f := range all {
			b, err := os.ReadFile(filepath.Join(dir, f.Name))
			if err != nil {
				t.Fatal(err)
			}
			if _, n, err := Verify(bytes.NewReader(b), id); err != nil || n == 0 {
				t.Errorf("%s: %d records, %v", f.Name, n, err)
			}
		}
	}
}

// Wherever the kill comes, there is a whole state or none, and the next attempt makes
// one and leaves nothing else.
func TestRestoreIsKilled(t *testing.T) {
	t.Parallel()
	dir, id := saved(t, "{}\n")
	run := func(state string, kill time.Duration) time.Duration {
		t.Helper()
		cmd := exec.Command(os.Args[0])
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Env = append(os.Environ(), "LIFE=restore", "LIFE_FROM="+dir, "LIFE_STATE="+state, "LIFE_KEY="+id.String())
		var out strings.Builder
		cmd.Stderr = &out
		began := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if kill > 0 {
			time.Sleep(kill) // any moment will do
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		} else if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
		return time.Since(began)
	}
	took := run(filepath.Join(t.TempDir(), "state"), 0)
	const kills = 6
	done := 0
	for i := 1; i <= kills; i++ {
		state := filepath.Join(t.TempDir(), "state")
		run(state, took*time.Duration(i)/kills)
		if whole(t, state) {
			done++
			continue
		}
		run(state, 0)
		if !whole(t, state) {
			t.Error("the attempt after a kill made nothing")
		}
		if left, _ := filepath.Glob(state + "?*"); len(left) > 0 {
			t.Errorf("%v is left over", left)
		}
	}
	t.Logf("a restore takes %s; %d of %d kills came too late", took.Round(time.Millisecond), done, kills)
}
