package uploadtest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/qcow2"
	"github.com/imagectl/imagectl/images/sparse/sparsetest"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/vmdk"
)

// rawSize of test images in bytes: no whole MiB.
const rawSize = 3<<20 + 512

// Image makes an image of a family; another seed is another image.
func Image(t testing.TB, format store.Format, family string, seed uint64) upload.Image {
	t.Helper()
	return imageOf(t, format, family, seed, rawSize)
}

func imageOf(t testing.TB, format store.Format, family string, seed uint64, rawSize int64) upload.Image {
	t.Helper()
	raw := sparsetest.Image(t, seed, rawSize)
	img := upload.Image{Name: family, Format: format, RawSize: rawSize, Digest: digest(t, raw), File: raw, Labels: labels()}
	img.Version = "4593.2.1-" + img.Digest[:8]
	write := map[store.Format]func(w *os.File) error{
		store.QCOW2: func(w *os.File) error { return qcow2.Write(t.Context(), w, raw, rawSize, qcow2.Options{}) },
		store.VMDK:  func(w *os.File) error { return vmdk.Write(t.Context(), w, raw, rawSize, vmdk.Options{}) },
	}[format]
	if write != nil {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk."+string(format)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if err := write(f); err != nil {
			t.Fatal(err)
		}
		img.File = f
	}
	st, err := img.File.Stat()
	if err != nil {
		t.Fatal(err)
	}
	img.Size, img.SHA256 = st.Size(), digest(t, img.File)
	return img
}

// labels have the forms that those of a build have.
func labels() map[string]string {
	return map[string]string{
		"cluster": "prod", "role": "worker", "flatcar": "4593.2.1", "kubernetes": "v1.36.3", "config-digest": "sha256:" + strings.Repeat("0f", 32),
		upload.LabelGit: "v0.0.0-20261122074200-d711a2875dd2-dirty", upload.LabelCreated: "2026-11-19T08:15:00Z", upload.LabelManifest: "sha256:" + strings.Repeat("1e", 32),
	}
}

func digest(t testing.TB, f *os.File) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
