package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/stall"
)

// silent accepts connections, reads a little, and closes: nobody is let in.
func silent(t *testing.T, network, address string) net.Addr {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr()
}

// Whatever a target sends goes past the watch of --stall, and so what a platform's
// source does.
func TestUploadWatchesEveryTarget(t *testing.T) {
	s := newUploadSite(t)
	t.Setenv("SECRET", "secret")
	untrusted := newAuthority(t).front(false, time.Now().Add(time.Hour)).URL
	entries, names := "\nupload:\n", []string{"host"}
	for _, p := range httpPlatforms() {
		entries += p.entry("my-"+p.kind, untrusted, "")
		names = append(names, "my-"+p.kind)
	}
	socket := filepath.Join(t.TempDir(), "libvirt")
	silent(t, "unix", socket)
	names = append(names, "my-libvirt")
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFP7Xx4NKV4oqKYLpYrX5bBDSHHn7M5YpyWrpTJmJp5d"
	s.write("cluster.yaml", s.started+entries+fmt.Sprintf(`
  - {name: my-libvirt, type: libvirt, endpoint: "qemu:///system?socket=%s", datastore: default}
  - {name: host, type: opennebula, endpoint: "%s/RPC2", datastore: default, username: ops, password: {env: SECRET}, options: {stage: frontend}}
  - {name: frontend, type: ssh, endpoint: "ssh://ops@%s/srv/images", password: {env: SECRET}, options: {hostKey: "%s"}}
`, socket, untrusted, silent(t, "tcp", "127.0.0.1:0"), key))
	g := &globals{stdio: Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}, file: s.path("cluster.yaml")}
	for _, name := range names {
		d, err := g.destination(name)
		if err != nil {
			t.Fatal(err)
		}
		d.watch = stall.New("--stall", time.Hour)
		if d.Options["stage"] != "" {
			source, stop, err := g.staged(t.Context(), d, nil, place{path: true}, d.Options["stage"])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := source.Clean(t.Context(), upload.Leftover{Kind: "staged file", Name: "/srv/images/" + strings.Repeat("a", 30)}); err == nil || d.watch.Bytes() == 0 {
				t.Errorf("%s: cleaning said %v, and %d bytes were counted", name, err, d.watch.Bytes())
			}
			stop()
			continue
		}
		target, stop, err := g.target(t.Context(), d, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := target.List(t.Context(), ""); err == nil || d.watch.Bytes() == 0 {
			t.Errorf("%s: listing said %v, and %d bytes were counted", name, err, d.watch.Bytes())
		}
		stop()
	}
}

// The clock of --stall runs by itself.
func TestUploadEndsWhenNothingMoves(t *testing.T) {
	t.Parallel()
	ctx, stop := watched(t.Context(), stall.New("--stall", 50*time.Millisecond))
	defer stop()
	<-ctx.Done()
	cause := context.Cause(ctx)
	if !errors.Is(cause, upload.ErrTimeout) || !strings.Contains(cause.Error(), "--stall 50ms is over") {
		t.Errorf("the cause is %v", cause)
	}
	if coded := (codedError{}); !errors.As(uploadError(cause), &coded) || coded.code != exitTimeout {
		t.Errorf("the exit code is that of %+v, want %d", coded, exitTimeout)
	}
	never, stop := watched(t.Context(), nil)
	stop()
	if never != t.Context() {
		t.Error("no limit is one")
	}
}

func TestUploadRefusesAStallThatIsAPause(t *testing.T) {
	s := newUploadSite(t)
	s.build(1)
	s.wants(exitUsage, "--stall 30s: want 0, for no limit, or 1m0s and more", "upload", "one", "worker", "--stall", "30s", "--out", s.path("out"))
	s.wants(exitUsage, "--stall -1m0s", "upload", "one", "worker", "--stall", "-1m", "--out", s.path("out"))
	s.wants(exitDone, "is current now", "upload", "one", "worker", "--stall", "0", "--out", s.path("out"))
}
