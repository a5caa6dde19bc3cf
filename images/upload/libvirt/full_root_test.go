//go:build root

package libvirt

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// A pool that has room when it is asked, and none when the bytes come: nothing is left of
// the volume, and with room again the same command ends it. libvirt says so of most bytes;
// of those that it has in its queue when the stream ends it does not (send a part to a pool
// that is full by virsh, which ends with 0), and reading back does.
func TestAPoolThatFillsUpMeanwhile(t *testing.T) {
	c := started(t)
	s := c.admin(t)
	dir := small(t, s, 5<<20)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	filler := filepath.Join(dir, "filler")
	state := t.TempDir()
	run := func(ev upload.Events) (upload.Outcome, error) {
		j, err := upload.OpenJournal(state, upload.Key{Target: "lv", Image: img})
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		return upload.Run(t.Context(), made(t, c), img, j, ev, true)
	}
	p, err := s.StoragePoolLookupByName(pool)
	if err != nil {
		t.Fatal(err)
	}
	const words, ours = "No space left on device", "not what was sent"
	for _, full := range []struct {
		when string
		at   func(upload.Event) bool
	}{
		{"the first bytes", func(e upload.Event) bool { return e.Done > 0 }},
		// It has 1.1 MiB: all of it may have been sent when libvirt says so.
		{"the last of the first range", func(e upload.Event) bool { return e.Done > 1<<20 }},
		{"the last bytes", func(e upload.Event) bool { return e.Done > 0 && e.Done == e.Total }},
	} {
		fill := sync.OnceFunc(func() {
			if err := os.WriteFile(filler, make([]byte, 6<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("filling the pool gave %v", err)
			}
		})
		_, err := run(func(e upload.Event) {
			if full.at(e) {
				fill()
			}
		})
		if !errors.Is(err, upload.ErrSpace) || !strings.Contains(err.Error(), words) && !strings.Contains(err.Error(), ours) {
			t.Errorf("full at %s: got %v, want ErrSpace, and %q or %q", full.when, err, words, ours)
		}
		t.Logf("full at %s: %v", full.when, err)
		if _, err := upload.Cleanup(t.Context(), made(t, c), state, "lv"); err != nil {
			t.Error(err)
		}
		for _, v := range volumes(t, s) {
			if v.Name != "filler" {
				t.Errorf("after the cleanup there is %s", v.Name)
			}
		}
		if all, err := made(t, c).List(t.Context(), ""); err != nil || len(all) > 0 {
			t.Errorf("listed is %+v, %v", all, err)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if err := s.StoragePoolRefresh(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := run(func(upload.Event) {}); err != nil || !out.Promoted {
		t.Errorf("with room again: %+v, %v", out, err)
	}
}
