//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/imagectl/imagectl/test/lab"
)

// buildTwice builds the same site again in another directory, with an empty
// cache, another umask and time zone.
func buildTwice(t *testing.T, ctx context.Context, rack *lab.Lab) {
	second := t.TempDir()
	site := filepath.Join(second, "elsewhere")
	if out, err := exec.CommandContext(ctx, "cp", "-a", rack.Site, site).CombinedOutput(); err != nil {
		t.Fatalf("copying the site: %v: %s", err, out)
	}
	if err := os.RemoveAll(filepath.Join(site, "out")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", `umask 077; exec "$0" build`, filepath.Join(*bin, "imagectl"))
	cmd.Dir = site
	cmd.Env = append(os.Environ(), "TZ=Asia/Kathmandu", "IMAGECTL_CACHE="+filepath.Join(second, "cache"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("building again: %v: %s", err, out.Bytes())
	}
	sameFiles(t, ctx, filepath.Join(rack.Site, "out"), filepath.Join(site, "out"))
}

// sameFiles lets cmp judge every file of two directories.
func sameFiles(t *testing.T, ctx context.Context, a, b string) {
	t.Helper()
	first, second := files(t, a), files(t, b)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Fatalf("the two builds made other files (-first +second):\n%s", diff)
	}
	if len(first) < 6 {
		t.Fatalf("the build made only %v", first)
	}
	for _, name := range first {
		if out, err := exec.CommandContext(ctx, "cmp", filepath.Join(a, name), filepath.Join(b, name)).CombinedOutput(); err != nil {
			t.Errorf("the two builds of %s differ: %v: %s", name, err, out)
		}
	}
}

// files lists the regular files of a directory, without hidden ones.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && e.Name()[0] != '.' {
			names = append(names, e.Name())
		}
	}
	return names
}
