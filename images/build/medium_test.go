package build_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/secureboot"
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

// signer is a new key for Secure Boot, and a file with its certificate.
func signer(t *testing.T) (s *secureboot.Signer, certPath string) {
	t.Helper()
	p, err := secureboot.Generate("test", time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := secureboot.ParseCertificate(p.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = secureboot.NewSigner(p.Key, cert); err != nil {
		t.Fatal(err)
	}
	certPath = filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(certPath, p.Certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	return s, certPath
}

// TestASignedInstaller: the program by itself and that on the ISO image are the
// same and signed; the certificate, not the key, decides whether they are up to date.
func TestASignedInstaller(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{Small: true}), t.TempDir()
	in := s.inputs(out)
	in.Sets = []build.Set{build.SetISO, build.SetUKI}
	run := func(want ...string) build.Result {
		t.Helper()
		res, err := build.Run(context.Background(), in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(res.Built, want) {
			t.Fatalf("built %q, want %q", res.Built, want)
		}
		return res
	}
	program, image := filepath.Join(out, "demo-installer.efi"), filepath.Join(out, "demo-installer.iso")
	run("demo-installer.efi", "demo-installer.iso")
	if list := tool(t, "sbverify", "--list", program); !strings.Contains(list, "No signature table present") {
		t.Errorf("without a key there is a signature: %s", list)
	}

	key, cert := signer(t)
	in.Medium.Certificate, in.Medium.Signer = key.Certificate().Raw, key
	res := run("demo-installer.efi", "demo-installer.iso")
	if sets := build.SetsOf(res.Manifest); !slices.Equal(sets, []build.Set{build.SetUKI, build.SetISO}) {
		t.Errorf("one would ask for it as %q", sets)
	}
	if a := artefact(t, res.Manifest, "", store.UKI); len(a.Inputs) != 5 {
		t.Errorf("the manifest says %+v", a)
	}
	tool(t, "sbverify", "--cert", cert, program)
	var at int64
	dump := tool(t, "sfdisk", "--dump", image)
	if _, err := fmt.Sscanf(dump[strings.Index(dump, "start="):], "start=%d", &at); err != nil {
		t.Fatalf("%v:\n%s", err, dump)
	}
	copied := filepath.Join(t.TempDir(), "bootx64.efi")
	tool(t, "mcopy", "-i", fmt.Sprintf("%s@@%d", image, at*512), "::EFI/BOOT/BOOTX64.EFI", copied)
	tool(t, "cmp", program, copied)

	// Whoever has no key keeps what is there, and makes nothing else of it.
	in.Medium.Signer = nil
	in.Sets = []build.Set{"raw.gz"}
	in.Only = []string{"worker"}
	res = run("demo-worker-4593.2.5-v1.36.3.raw.gz")
	artefact(t, res.Manifest, "", store.UKI)
	in.Sets = []build.Set{build.SetUKI}
	_, err := build.Run(context.Background(), in, nil)
	if want := "building format uki: it is to be signed, and there is no key"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	another, _ := signer(t)
	in.Medium.Certificate, in.Medium.Signer = another.Certificate().Raw, another
	run("demo-installer.efi")
}
