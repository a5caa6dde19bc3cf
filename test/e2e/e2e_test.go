//go:build e2e

// Package e2e holds the scenario of the main job: real firmware, a real kernel,
// real etcd and Kubernetes, in virtual machines on a bridge. "make e2e" runs it.
// What runs in the machines is the test release, not genuine Flatcar; see
// test/release/README.md for what that can and cannot prove.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
)

var (
	bin      = flag.String("bin", "", "directory of imagectl and bootstrapd")
	release  = flag.String("release", "", "directory of the test release")
	upstream = flag.String("upstream", "", "directory of the upstream programs")
	work     = flag.String("work", "", "directory for disks, consoles and logs; emptied first, kept when set, else a temporary one")
)

// stage runs one part of the scenario; the parts build on each other, so the
// first failure ends it.
func stage(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	start := time.Now()
	if !t.Run(name, f) {
		t.FailNow()
	}
	fmt.Fprintf(os.Stderr, "-- %s: %s\n", name, time.Since(start).Round(time.Second))
}

func newRack(t *testing.T, ctx context.Context) *lab.Lab {
	t.Helper()
	for name, value := range map[string]string{"-bin": *bin, "-release": *release, "-upstream": *upstream} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make e2e", name)
		}
	}
	dir := *work
	if dir == "" {
		dir = t.TempDir()
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	l, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: *upstream, Work: dir, Deaths: true,
		Machines: append(lab.Rack(), lab.IdleMachines()...),
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(start).Round(time.Second), fmt.Sprintf(format, args...))
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func TestMainJob(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 80*time.Minute, fmt.Errorf("the scenario's 80 minutes are over"))
	defer cancel()
	rack := newRack(t, ctx)

	stage(t, "validate, lock and build at a desk", func(t *testing.T) {
		if err := rack.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
	})
	stopCapture, err := rack.Capture()
	if err != nil {
		t.Fatal(err)
	}
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	// The machines mostly wait for their firmware's time-outs.
	stage(t, "before any machine is armed", func(t *testing.T) {
		t.Run("two builds give the same bytes", func(t *testing.T) {
			t.Parallel()
			buildTwice(t, ctx, rack)
		})
		t.Run("known, unarmed machines boot their own disks, which stay as they were", func(t *testing.T) {
			t.Parallel()
			idleMachines(t, ctx, rack)
		})
	})
	stage(t, "empty machines become a Ready cluster", func(t *testing.T) {
		// Every node kills its agent once in the middle of kubeadm's work; the server
		// dies while both machines download their images.
		if err := rack.Launch(ctx); err != nil {
			t.Fatal(err)
		}
		if err := rack.WaitState(ctx, "cp1", "installing", "installed", "enrolled", "member", "ready"); err != nil {
			t.Fatal(err)
		}
		rack.KillServe()
		rack.Log("imagectl serve: killed")
		if err := rack.Serve(ctx); err != nil {
			t.Fatal(err)
		}
		if err := rack.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	})
	stage(t, "a pod runs on the worker", func(t *testing.T) {
		if err := rack.RunProbe(ctx, "w1"); err != nil {
			t.Fatal(err)
		}
	})
	stage(t, "a person looks into the nodes", func(t *testing.T) { lookAtNodes(t, ctx, rack) })
	stage(t, "UEFI firmware boots the disk right after the network", func(t *testing.T) { diskRightAfterNetwork(t, rack) })
	stage(t, "no door is open on any node", func(t *testing.T) { closedDoors(t, ctx, rack) })
	stage(t, "after a power cut the cluster is Ready again by itself", func(t *testing.T) {
		powerCut(t, ctx, rack)
		diskRightAfterNetwork(t, rack)
	})
	pcap, err := stopCapture()
	if err != nil {
		t.Fatal(err)
	}
	powerOff(t, rack)
	stage(t, "no secret reached an unauthenticated client", func(t *testing.T) { noSecretLeft(t, ctx, rack, pcap) })
}
