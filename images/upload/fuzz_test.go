package upload

import (
	"os"
	"path/filepath"
	"testing"
)

// Whatever is in a journal's file, it opens or is refused, and what it opens to
// stays after another opening.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"write":{"kind":"image","name":"a"}}` + "\n" + `{"forget":{"kind":"image","name":"a"}}` + "\n" + `{"wri`))
	f.Add([]byte("{}\nnull\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "a.journal")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(path, 0)
		if err != nil {
			return
		}
		if err := j.Write(Leftover{Kind: "image", Name: "mine"}); err != nil {
			t.Fatal(err)
		}
		n := len(j.Left())
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if j, err = openJournal(path, 0); err != nil {
			t.Fatal(err)
		}
		if len(j.Left()) != n {
			t.Errorf("%d are left, then %d", n, len(j.Left()))
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
