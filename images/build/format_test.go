package build_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

// unpack turns an artefact back into a raw image with a foreign tool.
func unpack(t *testing.T, path string, f store.Format) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	var shell string
	switch f {
	case "raw.gz":
		shell = `gzip -dc "$1" >"$2"`
	case "raw.xz":
		shell = `xz -dc "$1" >"$2"`
	case "img.zst":
		shell = `zstd -qdc "$1" >"$2"`
	case store.QCOW2, store.QCOW2Zstd:
		shell = `qemu-img check -f qcow2 "$1" && qemu-img convert -f qcow2 -O raw "$1" "$2"`
	case store.VHD:
		shell = `qemu-img convert -f vpc -O raw "$1" "$2"`
	case "vhd.gz":
		shell = `gzip -dc "$1" >"$2.vhd" && qemu-img convert -f vpc -O raw "$2.vhd" "$2"`
	case "vhd.xz":
		shell = `xz -dc "$1" >"$2.vhd" && qemu-img convert -f vpc -O raw "$2.vhd" "$2"`
	case "vhd.zst":
		shell = `zstd -qdc "$1" >"$2.vhd" && qemu-img convert -f vpc -O raw "$2.vhd" "$2"`
	case store.VMDK:
		shell = `qemu-img check -f vmdk "$1" && qemu-img convert -f vmdk -O raw "$1" "$2"`
	case store.OVA:
		shell = `tar -xf "$1" -C "$(dirname "$2")" && cd "$(dirname "$2")" && sha256sum -c *.mf && qemu-img convert -f vmdk -O raw *-disk1.vmdk raw`
	default:
		t.Fatalf("nothing unpacks %s", f)
	}
	if out, err := exec.Command("sh", "-c", shell, "sh", path, raw).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", shell, err, out)
	}
	return raw
}

func TestEveryDiskFormatIsTheSameDisk(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{Small: true}), t.TempDir()
	in := s.inputs(out)
	in.Only = []string{"worker"}
	in.Sets = build.Sets()
	res, err := build.Run(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := artefact(t, res.Manifest, "worker", store.Raw)
	for _, a := range res.Manifest.Artefacts {
		if a.Role != "worker" || a.Format == store.Raw || a.Format == store.RawZstd || !a.Format.Carries() {
			continue
		}
		t.Run(string(a.Format), func(t *testing.T) {
			t.Parallel()
			if a.RawSHA256 != raw.RawSHA256 || a.RawSize != raw.RawSize {
				t.Errorf("%s says it is disk %s of %d bytes; the raw one is %s of %d", a.Name, a.RawSHA256, a.RawSize, raw.RawSHA256, raw.RawSize)
			}
			disk := unpack(t, filepath.Join(out, a.Name), a.Format)
			// A VHD ends on a whole MiB.
			if err := os.Truncate(disk, a.RawSize); err != nil {
				t.Fatal(err)
			}
			got, _, err := store.HashFile(context.Background(), disk)
			if err != nil || got != raw.SHA256 {
				t.Errorf("%s unpacks to %s, the raw image is %s: %v", a.Name, got, raw.SHA256, err)
			}
		})
	}
}

func TestAFormatAloneMakesOnlyThat(t *testing.T) {
	t.Parallel()
	ctx, s, out := context.Background(), newSite(t, t.TempDir(), baseimage.Options{Small: true}), t.TempDir()
	in := s.inputs(out)
	in.Sets = []build.Set{"raw.gz"}
	res, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if carriers(res.Manifest) != 2 || len(res.Built) != 2 {
		t.Errorf("raw.gz of two roles made %v", res.Built)
	}
	left, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	// Two images with three documents each, provenance, checksums, manifest.json,
	// .recipes.json.
	if len(left) != 12 {
		t.Errorf("the output directory holds %v", left)
	}
	again, err := build.Run(ctx, in, nil)
	if err != nil || len(again.Built) != 0 || len(again.Unchanged) != 2 {
		t.Errorf("a second build made %v: %v", again.Built, err)
	}
	// Another format later leaves the first alone.
	in.Sets = []build.Set{"raw.gz", "img.zst"}
	more, err := build.Run(ctx, in, nil)
	if err != nil || len(more.Built) != 2 || len(more.Unchanged) != 2 || carriers(more.Manifest) != 4 {
		t.Errorf("img.zst besides raw.gz: built %v, unchanged %v: %v", more.Built, more.Unchanged, err)
	}
}
