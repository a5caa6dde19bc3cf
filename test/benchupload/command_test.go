//go:build bench

package benchupload

import (
	"crypto/md5"
	"crypto/sha256"
	"flag"
	"fmt"
	"hash"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/daemon"
)

var program = flag.String("imagectl", "", "the program imagectl, as make builds it")

// The clouds keep more pieces in memory than the targets whose commands make upload-servers
// measures, and nobody else's program plays all of one. So the program as it is shipped sends
// to the sinks here.
func TestTheCommandsMemory(t *testing.T) {
	if *program == "" {
		t.Fatal("-imagectl is not set; run this through make bench-upload")
	}
	i := makeImages(t, t.TempDir())
	for _, c := range []struct {
		name, entry string
		format      store.Format
		file        file
		hash        func() hash.Hash
		protocol    func(s *sink) http.HandlerFunc
	}{
		{"aws", "type: aws, region: eu-central-1, username: AKIABENCH, password: {env: BENCH_SECRET}", store.Raw, i.dense, sha256.New,
			func(s *sink) http.HandlerFunc { return s.amazon }},
		{"azure", "type: azure, region: westeurope, datastore: vms, password: {env: BENCH_SECRET}, options: {subscription: s, resourceGroup: g}", store.VHD, i.footed, md5.New,
			func(s *sink) http.HandlerFunc { return s.azure }},
		{"gcp", "type: gcp, bucket: bench, password: {env: BENCH_SECRET}, options: {project: bench}", store.Raw, i.dense, newStorages,
			func(s *sink) http.HandlerFunc { return s.google }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSink(c.hash)
			s.protocol = c.protocol(s)
			dir := t.TempDir()
			site(t, dir, c.file, c.format, fmt.Sprintf("upload:\n  - {name: %s, endpoint: %q, %s}\n", c.name, serve(t, s), c.entry))
			kib, said, err := daemon.Peak(t.Context(), t, []string{"BENCH_SECRET=secret", "XDG_STATE_HOME=" + filepath.Join(dir, "state")},
				*program, "-f", filepath.Join(dir, "cluster.yaml"), "upload", c.name, "worker", "--format", string(c.format), "--out", filepath.Join(dir, "out"))
			if err != nil || !strings.Contains(said, "is current now") {
				t.Fatalf("%v: %s", err, said)
			}
			if n := s.sent(); n < *megabytes<<20/2 {
				t.Errorf("only %d bytes came", n)
			}
			fmt.Printf("imagectl upload %-7s %5.1f MiB were resident at most\n", c.name, float64(kib)/1024)
			if kib > memoryGoal {
				t.Errorf("%d KiB were resident at most, want less than %d", kib, memoryGoal)
			}
		})
	}
}

// site is what imagectl init makes, with an image in out/ as imagectl build leaves it.
func site(t *testing.T, dir string, f file, format store.Format, upload string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), *program, "init", dir).CombinedOutput(); err != nil {
		t.Fatalf("imagectl init: %v: %s", err, out)
	}
	conf, err := os.OpenFile(filepath.Join(dir, "cluster.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conf.Close()
	if _, err := conf.WriteString("\n" + upload); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	name := "lab-worker." + string(format)
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(f.Path, filepath.Join(out, name)); err != nil {
		t.Fatal(err)
	}
	m := store.Manifest{Version: 1, Cluster: "lab", Flatcar: "4593.2.1", Kubernetes: "v1.36.3"}
	m.Artefacts = append(m.Artefacts, store.Artefact{Name: name, Role: "worker", Format: format, Size: f.Size, SHA256: f.SHA256, RawSize: *megabytes << 20, RawSHA256: f.SHA256})
	if err := store.WriteManifest(out, m); err != nil {
		t.Fatal(err)
	}
}
