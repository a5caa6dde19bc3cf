package squashfs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/squashfs"
)

// BenchmarkAgainstMksquashfs packs the Go toolchain's binaries and standard
// library, which every machine that builds has (IMAGECTL_BENCH_DIR names
// another directory), with both programs in one run. times-faster compares
// elapsed time, cpu-ratio processor time (which a busy machine disturbs less),
// size-ratio the images.
func BenchmarkAgainstMksquashfs(b *testing.B) {
	dir := os.Getenv("IMAGECTL_BENCH_DIR")
	if dir == "" {
		dir = runtime.GOROOT() //nolint:staticcheck // the toolchain that builds this test is on this machine
	}
	tree := new(fstree.Tree)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		c, err := fstree.FromFile(p)
		if err != nil {
			return err
		}
		return tree.AddFile(rel, 0o644, c)
	})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(fstreetest.Size(tree))
	for b.Loop() {
		start, cpu := time.Now(), cpuTime(b, syscall.RUSAGE_SELF)
		ours := fileSize(b, write(b, tree, squashfs.Options{}))
		took, cpu := time.Since(start), cpuTime(b, syscall.RUSAGE_SELF)-cpu
		image := filepath.Join(b.TempDir(), "peer.raw")
		start, peerCPU := time.Now(), cpuTime(b, syscall.RUSAGE_CHILDREN)
		fstreetest.Run(b, apt, "mksquashfs", dir, image, "-comp", "zstd", "-Xcompression-level", "3", "-no-xattrs", "-no-progress", "-quiet")
		b.ReportMetric(float64(time.Since(start))/float64(took), "times-faster")
		b.ReportMetric(float64(cpu)/float64(cpuTime(b, syscall.RUSAGE_CHILDREN)-peerCPU), "cpu-ratio")
		b.ReportMetric(float64(ours)/float64(fileSize(b, image)), "size-ratio")
		b.ReportMetric(took.Seconds(), "s-ours")
	}
}

func cpuTime(b *testing.B, who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func fileSize(t testing.TB, name string) int64 {
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}
