//go:build bench

package benchupload

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/digitalocean/go-libvirt"
)

// onDisk is how much of a file is no hole.
func onDisk(t *testing.T, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	const unit = 512 // stat(2): of st_blocks
	return st.Sys().(*syscall.Stat_t).Blocks * unit
}

// emptied wants the file in the pool to be the one that was sent, and removes all.
func emptied(t *testing.T, l *libvirt.Libvirt, sent file, dir string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(all) != 1 {
		t.Fatalf("the pool has %v, %v", all, err)
	}
	f, err := os.Open(all[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := described(t, f); got.SHA256 != sent.SHA256 {
		t.Errorf("libvirt has %d bytes with the SHA-256 %s, and sent were %d with %s", got.Size, got.SHA256, sent.Size, sent.SHA256)
	}
	domains, _, err := l.ConnectListAllDomains(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range domains {
		if err := l.DomainUndefine(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(all[0]); err != nil {
		t.Fatal(err)
	}
	p, err := l.StoragePoolLookupByName(pool)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StoragePoolRefresh(p, 0); err != nil {
		t.Fatal(err)
	}
}
