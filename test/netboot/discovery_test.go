//go:build e2e

package netboot

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// A machine that cluster.yaml does not list, whose disk has an installed node on it, is
// switched on in our network. It loads the installer, which reports its hardware; nobody
// can have it install, and its disk is never written to: not one request to do so has
// reached it.
func TestUnknownMachineIsDiscoveredAndItsDiskStays(t *testing.T) {
	ctx := scenario(t)
	stranger := lab.Machine{Name: "stranger", Firmware: vm.SeaBIOS, CPUs: 1, MiB: 2048, Address: "10.77.0.61", MAC: "52:54:00:77:00:61", Unlisted: true}
	const name = "unknown-525400770061"
	rack := newRack(ctx, t, "", stranger)
	for _, args := range [][]string{{"validate"}, {"lock"}, {"build", "--format", "pxe"}, {"build", "worker", "--format", "raw"}} {
		if _, err := rack.Imagectl(ctx, args...); err != nil {
			t.Fatal(err)
		}
		rack.Log("imagectl %s", strings.Join(args, " "))
	}
	disk := rack.Disk(stranger)
	images, err := filepath.Glob(filepath.Join(rack.Site, "out", "demo-worker-*.raw"))
	if err != nil || len(images) != 1 {
		t.Fatalf("want one image of a worker, found %v, %v", images, err)
	}
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", images[0], disk).CombinedOutput(); err != nil {
		t.Fatalf("copying a node's image: %v: %s", err, out)
	}
	before := digest(t, disk)
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	if err := rack.PowerOn(stranger); err != nil {
		t.Fatal(err)
	}
	power := time.Now()
	if err := rack.WaitState(ctx, name, "discovered"); err != nil {
		t.Fatal(err)
	}
	rack.Log("%s: discovered %s after power-on", name, time.Since(power).Round(time.Second))
	show, err := rack.Imagectl(ctx, "machines", "show", name)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"disk-stranger", "SN-stranger", stranger.MAC} {
		if !strings.Contains(show, want) {
			t.Errorf("machines show does not say %q:\n%s", want, show)
		}
	}

	code, err := rack.ReadCode(ctx, stranger, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"machines", "approve", name, "--code", name + "=" + code}, {"machines", "arm", name}} {
		if _, err := rack.Imagectl(ctx, args...); err == nil || !strings.Contains(err.Error(), "add it there first") {
			t.Errorf("imagectl %s: got %v, want a refusal that says to list it first", strings.Join(args, " "), err)
		}
	}
	why, err := rack.Imagectl(ctx, "why", stranger.MAC)
	if err != nil {
		t.Fatal(err)
	}
	if want := "discover"; !strings.Contains(why, want) {
		t.Errorf("imagectl why does not say %q:\n%s", want, why)
	}

	guest := rack.Guests[stranger.Name]
	writes, err := guest.DiskWrites(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if writes != 0 {
		t.Errorf("its disk was asked to change %d times", writes)
	}
	guest.Stop()
	if after := digest(t, disk); after != before {
		t.Errorf("its disk has changed: %x, then %x", before, after)
	}
}

// digest is of a disk's content: of what is not zero, and where.
func digest(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	const block = 64 << 10
	h, b, seen := sha256.New(), make([]byte, block), 0
	for at := int64(0); ; {
		r, more, err := sparse.Next(f, at, size)
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		for at = max(at, r.Offset/block*block); at < r.Offset+r.Length; at += block {
			n, err := f.ReadAt(b, at)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if !sparse.IsZero(b[:n]) {
				h.Write(binary.LittleEndian.AppendUint64(nil, uint64(at)))
				h.Write(b[:n])
				seen += n
			}
		}
	}
	if seen < 64<<20 {
		t.Fatalf("%s holds %d bytes, which is no installed node", path, seen)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
