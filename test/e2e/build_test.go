//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/imagectl/imagectl/test/lab"
)

// buildTwice builds the same site again in another directory, with an empty
// cache, another umask, time zone and number of threads.
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
	cmd.Env = append(os.Environ(), "TZ=Asia/Kathmandu", "GOMAXPROCS=1", "IMAGECTL_CACHE="+filepath.Join(second, "cache"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("building again: %v: %s", err, out.Bytes())
	}
	first, again := digests(t, filepath.Join(rack.Site, "out")), digests(t, filepath.Join(site, "out"))
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the two builds differ (-first +second):\n%s", diff)
	}
	if len(first) < 4 {
		t.Errorf("the build made only %d files: %v", len(first), first)
	}
}

func digests(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		sums[rel] = fmt.Sprintf("%x", h.Sum(nil))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}
