//go:build root

package cli

import (
	"context"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

// nobody is the user that owns nothing.
const nobody = 65534

// TestTwoBuildsByTwoUsers runs the real command twice. Beside the commands of
// TestBundleScripts there are:
//
//	nobody DIR ARG...        run imagectl in a copy of the site, as nobody, in another
//	                         environment
//	same DIR DIR FORMATS     both hold the same files with the same bytes
func TestTwoBuildsByTwoUsers(t *testing.T) {
	packed, err := exec.Command("bzip2", "-1", "-c", baseimage.Make(t, t.TempDir(), baseimage.Options{Small: true})).Output()
	if err != nil {
		t.Fatalf("bzip2: %v", err)
	}
	p := newPublisher(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/root",
		Setup: func(env *testscript.Env) error {
			env.Setenv("FORMATS", strings.ReplaceAll(setNames(), ", ", ","))
			s := httptest.NewUnstartedServer(nil)
			env.Values[mirrorKey{}] = s
			env.Defer(s.Close)
			return letIn(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"release": p.release,
			"base": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), packed, 0o644))
			},
			"mirror": mirror,
			"nobody": asNobody,
			"same":   same,
		},
	})
}

// letIn lets everybody through to a temporary directory.
func letIn(dir string) error {
	for ; dir != filepath.Clean(os.TempDir()) && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func asNobody(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: nobody DIR ARG...")
	}
	self, err := os.Executable()
	ts.Check(err)
	dir := ts.MkAbs(args[0])
	// The program by its own name, and a cache, a home and a TMPDIR of its own.
	const copySite = `set -e; mkdir "$2" "$2/tmp" "$2/bin"
tar -C "$1" -c cluster.yaml imagectl.lock keys mirror | tar -C "$2" -x
cp "$3" "$2/bin/imagectl"; chmod -R u+rwX,go= "$2"; chown -R 65534:65534 "$2"`
	if out, err := exec.Command("sh", "-c", copySite, "sh", ts.MkAbs("."), dir, self).CombinedOutput(); err != nil {
		ts.Fatalf("copying the site: %v: %s", err, out)
	}
	cmd := exec.Command("sh", append([]string{"-c", `umask 077; exec bin/imagectl "$@"`, "sh"}, args[1:]...)...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=/nowhere", "HOME=" + dir, "USER=nobody", "TMPDIR=" + dir + "/tmp", "IMAGECTL_CACHE=" + dir + "/cache",
		"TZ=Asia/Kathmandu", "GOMAXPROCS=1", "LC_ALL=tr_TR.UTF-8", "SOURCE_DATE_EPOCH=1",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("building as nobody: %v: %s", err, out)
	}
}

// same lets no byte differ, and prints what it compared.
func same(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: same DIR DIR FORMATS")
	}
	first, second := sums(ts, args[0]), sums(ts, args[1])
	if diff := cmp.Diff(first, second); diff != "" {
		ts.Fatalf("the two builds differ (-first +second):\n%s", diff)
	}
	m, err := store.ReadManifest(ts.MkAbs(args[0]))
	ts.Check(err)
	var have []string
	for _, s := range build.SetsOf(m) {
		have = append(have, string(s))
	}
	want := strings.Split(args[2], ",")
	slices.Sort(have)
	slices.Sort(want)
	if diff := cmp.Diff(want, have); diff != "" {
		ts.Fatalf("formats that were compared (-want +have):\n%s", diff)
	}
	// For whoever reads what CI prints, also when all is well.
	fmt.Fprintf(os.Stderr, "-- two builds, the same bytes: %d files, in the formats %s\n", len(first), strings.Join(have, " "))
	for _, name := range slices.Sorted(maps.Keys(first)) {
		ts.Logf("%s  %s", first[name], name)
	}
}

// sums are the digests of a directory's files but hidden ones.
func sums(ts *testscript.TestScript, dir string) map[string]string {
	entries, err := os.ReadDir(ts.MkAbs(dir))
	ts.Check(err)
	out := map[string]string{}
	for _, e := range entries {
		if e.Name()[0] == '.' {
			continue
		}
		digest, _, err := store.HashFile(context.Background(), filepath.Join(ts.MkAbs(dir), e.Name()))
		ts.Check(err)
		out[e.Name()] = digest
	}
	return out
}
