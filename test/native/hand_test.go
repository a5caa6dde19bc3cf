//go:build root

package native

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/byhand"
)

// What came with a disk that somebody works at: the directory on it and on its machine (init_test.go
// lays var/lib of the first over the second), and the add-on's file.
const (
	handOnDisk = "var/lib/hand"
	handDir    = "/" + handOnDisk
	handAddon  = "addon.yaml"
)

// besideHand has the cluster typed on machines whose disks were written beforehand.
func besideHand(t *testing.T) *byhand.Race {
	r := bareRack(t, besideNames()...)
	image, etcd := r.rawImage(), filepath.Join(r.dir, byhand.EtcdImage)
	if err := byhand.WriteEtcdImage(t.Context(), upstream(t), kubernetesVersion(), etcd); err != nil {
		t.Fatal(err)
	}
	for _, m := range besideMachines() {
		r.handDisk(m, image, etcd)
	}
	race := byhand.NewRace(0, t.Logf)
	w := &byhand.Typist{Race: race, Machines: besideMachines(), Shells: map[string]byhand.Shell{}, Kubernetes: kubernetesVersion(), Dir: handDir, AddOn: handAddon, Together: os.Getenv("NATIVE_TOGETHER") != "",
		// Nothing asks sooner whether containerd answers: our systemctl has no word for it.
		Waits:      "until ctr version >/dev/null 2>&1; do sleep 0.1; done",
		Administer: func(string) error { return nil }, // it is read where it is
	}
	for i, name := range besideNames() {
		m := r.nodes[name]
		m.Installed = true
		r.start(name, i+1)
		// systemd reads /etc/hostname when a system starts.
		run(t, "nsenter", "-t", fmt.Sprint(m.pid), "-u", "hostname", name)
		log, err := os.Create(filepath.Join(m.Dir, "shell.log"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = log.Close() })
		w.Shells[name] = prompt{m, log}
	}
	typed, stop := r.typing(w)
	defer stop()
	r.finish(race, func() {
		select {
		case err := <-typed:
			if err != nil {
				t.Fatal(err)
			}
			typed = nil // it is over
		default:
		}
	})
	r.whole()
	const pki = "/etc/kubernetes/pki/etcd/"
	out, err := r.nodes["cp1"].on("etcdctl", "--endpoints", "https://127.0.0.1:2379", "--cacert", pki+"ca.crt", "--cert", pki+"healthcheck-client.crt", "--key", pki+"healthcheck-client.key", "endpoint", "health", "--cluster")
	if err != nil || strings.Count(out, " is healthy: ") != 3 {
		t.Errorf("members of etcd: %v\n%s", err, out)
	}
	return race
}

// typing has it typed, until stop at the latest, which waits for the end of it.
func (r *rack) typing(w *byhand.Typist) (typed <-chan error, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	result, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		result <- w.Type(ctx)
	}()
	return result, func() { cancel(); <-ended }
}

// handDisk writes what an installation writes, an empty ROOT, and on it a name, the add-on, and etcd's
// image where a control plane will be.
func (r *rack) handDisk(m byhand.Machine, image, etcd string) {
	r.t.Helper()
	run(r.t, "dd", "if="+image, "of="+r.nodes[m.Name].Loop, "bs=4M", "conv=sparse,notrunc,fsync", "status=none")
	root := filepath.Join(r.dir, m.Name+".root")
	if err := os.Mkdir(root, 0o755); err != nil {
		r.t.Fatal(err)
	}
	run(r.t, "mount", "-t", "ext4", "-o", fmt.Sprintf("loop,offset=%d,sizelimit=%d", rootStart, rootSize), r.nodes[m.Name].Loop, root)
	defer run(r.t, "umount", root)
	for _, d := range []string{"etc", handOnDisk} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	for file, content := range map[string]string{
		"etc/hostname":               m.Name + "\n",
		"etc/hosts":                  "127.0.0.1 localhost\n::1 localhost\n" + m.Address + " " + m.Name + "\n",
		handOnDisk + "/" + handAddon: addon,
	} {
		if err := os.WriteFile(filepath.Join(root, file), []byte(content), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	if !m.Worker {
		run(r.t, "cp", etcd, filepath.Join(root, handOnDisk))
	}
}

// prompt is a shell on a machine.
type prompt struct {
	*machine
	log io.Writer
}

// Run is byhand.Shell's.
func (p prompt) Run(ctx context.Context, command string) (string, error) {
	fmt.Fprintf(p.log, "$ %s\n", command)
	cmd := p.command(ctx, "bash", "-c", command)
	cmd.WaitDelay = time.Second // what runs in the machine's own namespace ends with it
	var out strings.Builder
	both := io.MultiWriter(&out, p.log)
	cmd.Stdout, cmd.Stderr = both, both
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("on %s, %q: %w:\n%s", p.Name, command, err, out.String())
	}
	return out.String(), err
}
