//go:build root

package ext4_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/imagectl/imagectl/images/fstree/fstreetest"
)

// After a power loss the journal must bring back what was synced.
func TestJournalSurvivesAPowerLoss(t *testing.T) {
	tree := fstreetest.Sample(t)
	image := write(t, 1784*mib, tree, options())
	t.Run("lose power", func(t *testing.T) {
		dir := fstreetest.Mount(t, image, "ext4", "rw")
		for _, name := range []string{"new-1", "new-2", "many/new-3"} {
			f, err := os.Create(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString("synced\n"); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		shutDown(t, dir)
	})
	if got := fstreetest.Run(t, apt, "dumpe2fs", "-h", image); !strings.Contains(got, "needs_recovery") {
		t.Fatalf("the journal is empty, so this test proves nothing:\n%s", got)
	}
	t.Run("recover", func(t *testing.T) {
		dir := fstreetest.Mount(t, image, "ext4", "rw")
		for _, name := range []string{"new-1", "new-2", "many/new-3"} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != "synced\n" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	})
	check(t, image)
}

// shutDown is EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH of the
// kernel's include/uapi/linux/ext4.h: from now on nothing reaches the disk.
func shutDown(t *testing.T, dir string) {
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags := uint32(2)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), 0x8004587D, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		t.Fatal("shutting the file system down:", errno)
	}
}
