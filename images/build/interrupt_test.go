package build_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

// A build that is interrupted, at whatever moment it says something, leaves the
// output directory as an earlier build left it, or finishes.
func TestInterruptedAtAnyMomentNothingIsHalfWritten(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{Small: true}), t.TempDir()
	in := s.inputs(out)
	in.Only, in.Sets = []string{"worker"}, []build.Set{build.SetRaw, "ova"}
	events := 0
	first, err := build.Run(context.Background(), in, func(build.Event) { events++ })
	if err != nil {
		t.Fatal(err)
	}
	if events < 8 {
		t.Fatalf("a build says only %d things; this test needs moments to interrupt it", events)
	}
	// Every image is another one from now on.
	in.Roles[1].GrubCfg = []byte("set linux_append=\"other\"\n")
	for moment := 1; ; moment++ {
		ctx, cancel := context.WithCancel(context.Background())
		said := 0
		res, err := build.Run(ctx, in, func(build.Event) {
			if said++; said == moment {
				cancel()
			}
		})
		cancel()
		want := first.Manifest
		if err == nil {
			want = res.Manifest
		} else if !errors.Is(err, context.Canceled) {
			t.Fatalf("interrupted at moment %d: %v", moment, err)
		}
		whole(t, out, want)
		if t.Failed() {
			t.Fatalf("interrupted at moment %d of about %d: %v", moment, events, err)
		}
		if err == nil {
			if moment < 4 {
				t.Errorf("it finished although it was interrupted at moment %d", moment)
			}
			return
		}
	}
}

// whole looks that a directory holds what a manifest says, and nothing else but
// what builds keep there.
func whole(t *testing.T, out string, m store.Manifest) {
	t.Helper()
	known := map[string]bool{store.ManifestName: true, "SHA256SUMS": true, "provenance.intoto.jsonl": true, ".recipes.json": true}
	for _, a := range m.Artefacts {
		known[a.Name] = true
		digest, size, err := store.HashFile(context.Background(), filepath.Join(out, a.Name))
		if err != nil || digest != a.SHA256 || size != a.Size {
			t.Errorf("%s has %d bytes with sha256 %s, the manifest says %d and %s: %v", a.Name, size, digest, a.Size, a.SHA256, err)
		}
	}
	left, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if !known[e.Name()] {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}
