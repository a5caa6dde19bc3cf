//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/test/lab"
)

// powerCut pulls every plug, plants the kernel arguments that open doors on a
// Flatcar machine, and powers on again.
func powerCut(t *testing.T, ctx context.Context, rack *lab.Lab) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDoorDoorDoorDoorDoorDoorDoorDoorDoorDoorDoor intruder"
	boots, err := rack.Boots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range rack.Active() {
		rack.Guests[m.Name].Stop()
		onPartition(t, rack.Disk(m), "OEM", func(dir string) {
			plant(t, filepath.Join(dir, "grub.cfg"), fmt.Sprintf(` flatcar.autologin coreos.autologin sshkey=\"%s\"`, key))
		})
	}
	for _, m := range rack.Active() {
		if err := rack.PowerOn(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := rack.WaitBack(ctx, boots); err != nil {
		t.Fatal(err)
	}
	closedDoors(t, ctx, rack)
}

// plant appends to the value of linux_append in an OEM grub.cfg.
func plant(t *testing.T, file, args string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	i := strings.Index(text, `set linux_append="`)
	if i < 0 {
		t.Fatalf("%s has no linux_append: %s", file, text)
	}
	end := i + len(`set linux_append="`) + strings.IndexByte(text[i+len(`set linux_append="`):], '"')
	if err := os.WriteFile(file, []byte(text[:end]+args+text[end:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

// onPartition mounts one partition of a stopped machine's disk.
func onPartition(t *testing.T, disk, label string, f func(dir string)) {
	t.Helper()
	if err := lab.OnPartition(disk, label, func(dir string) error { f(dir); return nil }); err != nil {
		t.Fatal(err)
	}
}
