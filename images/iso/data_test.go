package iso_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/iso"
)

// isoinfo and xorriso read what platforms attach; nothing complains.
func TestForeignToolsReadTheFileOfADataVolume(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, content := range []string{"x", strings.Repeat("node ", 1000)} {
		b, err := iso.Data("CIDATA", "USER-DATA", []byte(content), at)
		if err != nil {
			t.Fatal(err)
		}
		again, err := iso.Data("CIDATA", "USER-DATA", []byte(content), at)
		if err != nil || !bytes.Equal(b, again) {
			t.Error("two of one content differ")
		}
		img := filepath.Join(t.TempDir(), "node.iso")
		if err := os.WriteFile(img, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if info := fstreetest.Run(t, "genisoimage", "isoinfo", "-d", "-i", img); !strings.Contains(info, "Volume id: CIDATA") {
			t.Errorf("isoinfo says\n%s", info)
		}
		if got := fstreetest.Run(t, "genisoimage", "isoinfo", "-i", img, "-x", "/USER-DATA.;1"); got != content {
			t.Errorf("isoinfo reads %d bytes, want %d", len(got), len(content))
		}
		dir := t.TempDir()
		out := fstreetest.Run(t, "xorriso", "xorriso", "-osirrox", "on", "-indev", img, "-extract", "/", dir)
		got, err := os.ReadFile(filepath.Join(dir, "USER-DATA"))
		if err != nil || string(got) != content {
			t.Errorf("xorriso: %v\n%s", err, out)
		}
	}
	for _, bad := range [][2]string{{"cidata", "USER-DATA"}, {"", "A"}, {"CIDATA", "user-data"}, {"CIDATA", ""}, {"CIDATA", "A/B"}} {
		if _, err := iso.Data(bad[0], bad[1], []byte("x"), at); err == nil {
			t.Errorf("label %q and name %q are taken", bad[0], bad[1])
		}
	}
	if _, err := iso.Data("CIDATA", "USER-DATA", nil, at); err == nil {
		t.Error("a file of nothing is taken")
	}
}
