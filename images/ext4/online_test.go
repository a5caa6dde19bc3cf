//go:build root && resource

package ext4_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/fstree/fstreetest"
)

// The kernel grows a mounted file system for those with CAP_SYS_RESOURCE only,
// which root in a container or sandbox often lacks: hence a tag of its own.
func TestKernelGrowsTheMountedFileSystem(t *testing.T) {
	for _, size := range []int64{20 << 30, 200 << 30} {
		t.Run(fmt.Sprintf("to %d bytes", size), func(t *testing.T) {
			tree := fstreetest.Sample(t)
			image := write(t, 1784*mib, tree, options())
			if err := os.Truncate(image, size); err != nil {
				t.Fatal(err)
			}
			t.Run("online", func(t *testing.T) {
				dir := fstreetest.Mount(t, image, "ext4", "rw")
				device := strings.TrimSpace(fstreetest.Run(t, "util-linux", "findmnt", "-n", "-o", "SOURCE", dir))
				fstreetest.Run(t, apt, "resize2fs", device)
				fstreetest.Compare(t, tree, dir, fstreetest.Except{Names: []string{"lost+found"}})
			})
			check(t, image)
			if got := fstreetest.Run(t, apt, "dumpe2fs", "-h", image); !strings.Contains(got, fmt.Sprintf(" %d\n", size/4096)) {
				t.Errorf("after growing to %d bytes:\n%s", size, got)
			}
		})
	}
}
