package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzManifest wants that what is accepted is written again and read as the same.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version": 1, "cluster": "demo", "flatcar": "4593.2.5", "kubernetes": "v1.36.3", "artefacts": []}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, ManifestName), in, 0o644); err != nil {
			t.Fatal(err)
		}
		m, err := ReadManifest(dir)
		if err != nil {
			return
		}
		for _, a := range m.Artefacts {
			if filepath.Dir(filepath.Join(dir, a.Name)) != dir {
				t.Errorf("artefact %q is not beside the manifest", a.Name)
			}
		}
		if err := WriteManifest(dir, m); err != nil {
			t.Fatal(err)
		}
		again, err := ReadManifest(dir)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, again); d != "" {
			t.Error(d)
		}
	})
}
