package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/imagectl/imagectl/images/sparse"
)

const (
	// peakGoal bounds the memory of making any format, in bytes.
	peakGoal = 256 << 20
	// flatGoal is how much more an image of twice the size may take: a process of
	// Go's never takes the same twice.
	flatGoal = 1.25
)

// peaks prints the memory that making each format takes, of a disk and of one
// twice as large with twice the content. It names the goals that were missed.
func peaks(ctx context.Context, self, tmp, disk, extension string) (missed []string, err error) {
	double := filepath.Join(tmp, "double.raw")
	if err := doubled(ctx, double, disk); err != nil {
		return nil, err
	}
	fmt.Printf("\n%-20s %12s %12s %12s\n", "peak memory", "", "twice as big", "goal")
	for _, job := range []string{"qcow2", "zstd.qcow2", "vmdk", "vhd", "raw.zst", "raw.gz", "img.zst", "raw.xz", "edit"} {
		var peak [2]int64
		for i, src := range []string{disk, double} {
			argv := []string{self, "-job", job, src}
			if job == "edit" {
				argv = append(argv, extension)
			}
			m, err := measure(ctx, append(argv, filepath.Join(tmp, "out")))
			if err != nil {
				return nil, err
			}
			peak[i] = m.peak
		}
		var verdict []string
		if max(peak[0], peak[1]) > peakGoal {
			verdict = append(verdict, "too much memory")
		}
		if float64(peak[1]) > flatGoal*float64(peak[0]) {
			verdict = append(verdict, "memory grows with the image")
		}
		if len(verdict) > 0 {
			missed = append(missed, job+": "+strings.Join(verdict, ", "))
		}
		fmt.Printf("%-20s %9d MB %9d MB %9d MB  %s\n", job, peak[0]>>20, peak[1]>>20, peakGoal>>20, strings.Join(verdict, ", "))
	}
	return missed, nil
}

// doubled makes a disk that holds another one twice, one behind the other. The
// partition table is that of the first.
func doubled(ctx context.Context, path, disk string) error {
	in, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := sparse.Copy(ctx, out, in); err != nil {
		return err
	}
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(2 * st.Size()); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		data, ok, err := sparse.Next(in, off, st.Size())
		if err != nil || !ok {
			return err
		}
		for off = data.Offset; off < data.Offset+data.Length; {
			b := buf[:min(int64(len(buf)), data.Offset+data.Length-off)]
			if _, err := in.ReadAt(b, off); err != nil {
				return err
			}
			if _, err := out.WriteAt(b, st.Size()+off); err != nil {
				return err
			}
			off += int64(len(b))
		}
	}
}
