//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// idleMachines netboots a machine of each firmware that is in cluster.yaml and
// not armed. Its disk holds a program that says so and halts.
func idleMachines(t *testing.T, ctx context.Context, rack *lab.Lab) {
	for _, m := range rack.Machines {
		if !m.Idle {
			continue
		}
		disk := rack.Disk(m)
		if err := vm.WriteSentinelDisk(disk, m.Firmware); err != nil {
			t.Fatal(err)
		}
		before := digest(t, disk)
		if err := rack.PowerOn(m); err != nil {
			t.Fatal(err)
		}
		g := rack.Guests[m.Name]
		// iPXE says why, and comes back to the firmware.
		if _, err := g.Console.Wait(ctx, 0, regexp.MustCompile(`imagectl: local \(not-armed\)`)); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		if _, err := g.Console.Wait(ctx, 0, regexp.MustCompile(regexp.QuoteMeta(vm.Sentinel))); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		// It must have netbooted first: the server was asked and said no.
		why, err := rack.Imagectl(ctx, "why", m.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"local", "not-armed", "script"} {
			if !strings.Contains(why, want) {
				t.Errorf("why %s does not mention %q:\n%s", m.Name, want, why)
			}
		}
		g.Stop()
		delete(rack.Guests, m.Name)
		if after := digest(t, disk); after != before {
			t.Errorf("%s: the disk changed: %x, then %x", m.Name, before, after)
		}
	}
}

func digest(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
