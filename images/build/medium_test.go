package build_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

func TestAnISOIsMadeOnceAndTheSameElsewhere(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{Small: true}), t.TempDir()
	in := s.inputs(out)
	in.Sets = []build.Set{build.SetISO}
	res, err := build.Run(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	iso := artefact(t, res.Manifest, "", store.ISO)
	if iso.Name != "demo-installer.iso" || len(iso.Inputs) != 7 {
		t.Errorf("the manifest says %+v", iso)
	}
	// The image and the bill of materials of the installer.
	if len(res.Manifest.Artefacts) != 2 || !slices.Equal(build.SetsOf(res.Manifest), in.Sets) {
		t.Errorf("made %+v, which one would ask for as %q", res.Manifest.Artefacts, build.SetsOf(res.Manifest))
	}
	digest, size, err := store.HashFile(context.Background(), filepath.Join(out, iso.Name))
	if err != nil || digest != iso.SHA256 || size != iso.Size {
		t.Errorf("the file has %s and %d bytes, the manifest says %s and %d: %v", digest, size, iso.SHA256, iso.Size, err)
	}
	if report := tool(t, "xorriso", "-indev", filepath.Join(out, iso.Name), "-report_el_torito", "plain"); !strings.Contains(report, "UEFI  y   none") {
		t.Errorf("xorriso: %s", report)
	}
	if again, err := build.Run(context.Background(), in, nil); err != nil || len(again.Built) != 0 {
		t.Errorf("the second run built %q: %v", again.Built, err)
	}
	in.Out = t.TempDir()
	other, err := build.Run(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := artefact(t, other.Manifest, "", store.ISO); got.SHA256 != iso.SHA256 {
		t.Errorf("elsewhere it is %s, want %s", got.SHA256, iso.SHA256)
	}
	in.Medium.Args = append(in.Medium.Args, "console=tty0")
	if changed, err := build.Run(context.Background(), in, nil); err != nil || !slices.Contains(changed.Built, iso.Name) {
		t.Errorf("with another argument it built %q: %v", changed.Built, err)
	}
}

func TestAnISOIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, t.TempDir(), baseimage.Options{Small: true})
	in := s.inputs(t.TempDir())
	in.Sets = []build.Set{build.SetISO}
	// Rot that leaves the size alone.
	path := s.store.Path(in.Medium.LDLINUX.SHA256)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("rot"), 1000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := build.Run(context.Background(), in, nil); err == nil || !strings.Contains(err.Error(), in.Medium.LDLINUX.SHA256) {
		t.Errorf("with a damaged input: %v", err)
	}
	in.Medium = nil
	_, err = build.Run(context.Background(), in, nil)
	if want := "building format iso: cluster.yaml has no boot.iso, which names the programs that boot it"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if left, _ := os.ReadDir(in.Out); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}
