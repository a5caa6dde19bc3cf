//go:build judge

package etcdsnap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/test/daemon"
)

// TestMain is two programs: the tests, and Inspect in a process of its own. bbolt reads the pages of
// etcd's databases, which have no list of free ones, in a goroutine of its own, and a damaged one
// ends the process that does (DB.freepages of 1.5.0).
func TestMain(m *testing.M) {
	path := os.Getenv("ETCDSNAP_INSPECT")
	if path == "" {
		os.Exit(m.Run())
	}
	c, err := Inspect(context.Background(), path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(c); err != nil {
		os.Exit(3)
	}
	os.Exit(0)
}

// apart is Inspect in a process of its own; ended is what its error says.
func apart(path string) (c Contents, ended string) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ETCDSNAP_INSPECT="+path)
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &c)
	}
	if err != nil {
		return c, err.Error()
	}
	return c, ""
}

// Inspect finds in databases of a real etcd what etcdutl finds, also where the last revisions were
// compacted away; and both refuse one with a page that is damaged.
func TestEtcdutlReadsTheSame(t *testing.T) {
	dir := os.Getenv("IMAGECTL_ETCD")
	if dir == "" {
		t.Fatal("IMAGECTL_ETCD does not say where etcd, etcdctl and etcdutl are: run this by make native")
	}
	work := t.TempDir()
	client, peer := "http://"+daemon.Address(t), "http://"+daemon.Address(t)
	ctl := func(args ...string) ([]byte, error) {
		return exec.Command(filepath.Join(dir, "etcdctl"), append([]string{"--endpoints", client}, args...)...).CombinedOutput()
	}
	daemon.Start(t, exec.Command(filepath.Join(dir, "etcd"), "--data-dir", filepath.Join(work, "data"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer), "make upstream builds it", func() error {
		_, err := ctl("get", "x")
		return err
	})
	must := func(args ...string) {
		t.Helper()
		if out, err := ctl(args...); err != nil {
			t.Fatalf("etcdctl %v: %v: %s", args, err, out)
		}
	}
	status := func(path string) (revision int64, err error) {
		out, err := exec.Command(filepath.Join(dir, "etcdutl"), "snapshot", "status", path, "--write-out", "json").Output()
		var s struct {
			Revision int64 `json:"revision"`
		}
		return s.Revision, errors.Join(err, json.Unmarshal(out, &s))
	}
	for i := range 40 {
		must("put", fmt.Sprintf("key%03d", i), "value")
	}
	damaged := map[string]int{}
	for i, prepare := range []func(){
		func() {},
		func() { must("del", "key", "--prefix") },
		func() { must("put", "key", "value"); must("compact", "42"); must("defrag") },
		func() { must("del", "key"); must("compact", "44"); must("defrag") },
	} {
		prepare()
		path := filepath.Join(work, fmt.Sprint(i))
		must("snapshot", "save", path)
		want, err := status(path)
		if err != nil {
			t.Fatal(err)
		}
		got, ended := apart(path)
		// etcdutl counts the keys that are there, and nothing that was compacted.
		if was := []int64{41, 42, 43, 44}[i]; ended != "" || got.Revision != was || want > was {
			t.Errorf("%d: Inspect says %+v, %q; etcdutl revision %d; etcd was at %d", i, got, ended, want, was)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		page := os.Getpagesize()
		for at := 2 * page; at < 6*page && at+page <= len(b)-32; at += page {
			db := append([]byte(nil), b[:len(b)-32]...)
			clear(db[at : at+page])
			bad := path + ".bad"
			if err := os.WriteFile(bad, sealed(db), 0o600); err != nil {
				t.Fatal(err)
			}
			_, theirs := status(bad)
			_, ours := apart(bad)
			if (theirs != nil) != (ours != "") {
				t.Errorf("%d: the page at %d is damaged: etcdutl says %v, Inspect %q", i, at, theirs, ours)
			}
			if ours != "" && ours != "exit status 1" && ours != "exit status 2" {
				t.Errorf("%d: the page at %d is damaged: Inspect ends with %s, which imagectl serve does not take for a finding", i, at, ours)
			}
			damaged[ours]++
		}
	}
	t.Logf("how checks of damaged databases ended: %v", damaged)
	if damaged["exit status 1"]+damaged["exit status 2"] == 0 {
		t.Error("no damage was found: the test shows nothing")
	}
}
