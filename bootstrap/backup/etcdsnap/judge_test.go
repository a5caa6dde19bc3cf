//go:build judge

package etcdsnap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/test/daemon"
)

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
	for i := range 200 {
		must("put", fmt.Sprintf("key%03d", i), "value")
	}
	for i, prepare := range []func(){
		func() {},
		func() { must("del", "key", "--prefix") },
		func() { must("put", "key", "value"); must("compact", "202"); must("defrag") },
		func() { must("del", "key"); must("compact", "204"); must("defrag") },
	} {
		prepare()
		path := filepath.Join(work, fmt.Sprint(i))
		must("snapshot", "save", path)
		want, err := status(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Inspect(t.Context(), path)
		// etcdutl counts the keys that are there, and nothing that was compacted.
		if was := []int64{201, 202, 203, 204}[i]; err != nil || got.Revision != was || want > was {
			t.Errorf("%d: Inspect says %+v, %v; etcdutl revision %d; etcd was at %d", i, got, err, want, was)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		page := os.Getpagesize()
		for at := 2 * page; at < 6*page; at += page {
			db := append([]byte(nil), b[:len(b)-32]...)
			clear(db[at : at+page])
			bad := path + ".bad"
			if err := os.WriteFile(bad, sealed(db), 0o600); err != nil {
				t.Fatal(err)
			}
			_, theirs := status(bad)
			var broken *BrokenError
			_, ours := Inspect(t.Context(), bad)
			if theirs != nil && !errors.As(ours, &broken) {
				t.Errorf("%d: the page at %d is damaged: etcdutl says %v, Inspect %v", i, at, theirs, ours)
			}
		}
	}
}
