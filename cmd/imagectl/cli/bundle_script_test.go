package cli

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imagectl/imagectl/test/baseimage"
)

// TestBundleScripts carries a site across an air gap. Beside the commands of
// TestLockScripts there are:
//
//	base FILE      a small base image, packed with bzip2
//	mirror up      serve the directory mirror, whose URL replaces MIRROR in
//	               cluster.yaml
//	mirror down    end that
func TestBundleScripts(t *testing.T) {
	packed, err := exec.Command("bzip2", "-1", "-c", baseimage.Make(t, t.TempDir(), baseimage.Options{})).Output()
	if err != nil {
		t.Fatalf("bzip2: %v", err)
	}
	p := newPublisher(t)
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/bundle",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			s := httptest.NewUnstartedServer(nil)
			env.Values[mirrorKey{}] = s
			env.Defer(s.Close)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"release": p.release,
			"flip": func(ts *testscript.TestScript, neg bool, args []string) {
				change(ts, args, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
			},
			"cut": func(ts *testscript.TestScript, neg bool, args []string) {
				change(ts, args, func(b []byte) []byte { return b[:len(b)*3/4] })
			},
			"base": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), packed, 0o644))
			},
			"mirror": mirror,
		},
	})
}

// mirror starts and ends the server of a script.
func mirror(ts *testscript.TestScript, neg bool, args []string) {
	held, _ := ts.Value(mirrorKey{}).(*httptest.Server)
	switch strings.Join(args, " ") {
	case "up":
		held.Config.Handler = http.FileServer(http.Dir(ts.MkAbs("mirror")))
		held.Start()
		spec := strings.ReplaceAll(ts.ReadFile("cluster.yaml"), "MIRROR", held.URL)
		ts.Check(os.WriteFile(ts.MkAbs("cluster.yaml"), []byte(spec), 0o644))
	case "down":
		held.Close()
	default:
		ts.Fatalf("usage: mirror up|down")
	}
}

type mirrorKey struct{}
