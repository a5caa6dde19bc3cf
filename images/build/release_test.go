//go:build release

package build_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

// TestARealReleaseAsBase builds from a whole release, the test release or a
// genuine one, below $IMAGECTL_TEST_RELEASE:
//
//	IMAGECTL_TEST_RELEASE=… go test -tags release -run RealRelease ./images/build
func TestARealReleaseAsBase(t *testing.T) {
	dir := os.Getenv("IMAGECTL_TEST_RELEASE")
	found, err := filepath.Glob(filepath.Join(dir, "*/amd64-usr/[0-9]*/flatcar_production_image.bin.bz2"))
	if err != nil || dir == "" || len(found) == 0 {
		t.Fatalf("IMAGECTL_TEST_RELEASE=%q holds no CHANNEL/amd64-usr/VERSION/flatcar_production_image.bin.bz2", dir)
	}
	s, out := newSite(t, t.TempDir(), baseimage.Options{}), t.TempDir()
	in := s.inputs(out)
	b, err := s.store.Fetch(context.Background(), store.Request{Source: found[0]})
	if err != nil {
		t.Fatal(err)
	}
	in.Image = lock.Blob{ID: lock.FlatcarImage, Source: found[0], SHA256: b.SHA256, Size: b.Size, Signer: in.Image.Signer}
	res, err := build.Run(context.Background(), in, func(e build.Event) {
		if e.Done == 0 {
			t.Log(e.Step)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	judge(t, filepath.Join(out, artefact(t, res.Manifest, "control-plane", store.Raw).Name))
}
