package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/sparse"
)

const (
	// peakGoal bounds the memory of making any format, in bytes.
	peakGoal = 256 << 20
	// flatGoal is how much more an image of twice the size may take.
	flatGoal = 1.25
	// partData is how much of a disk is packed where that takes long, in bytes.
	partData = 48_000_000
)

// sources are what the formats are made of.
type sources struct {
	disk, extension, kernel, initrd string
}

// row is one format: what it is made of, and of twice as much.
type row struct {
	job  string
	srcs [2]string
	more []string
	note string
}

// peaks measures both, and again when the larger seems to take more: what a process
// of Go's takes depends on when its collector ran, and growth shows every time.
func (r row) peaks(ctx context.Context, self, out string) (peak [2]int64, err error) {
	for range 3 {
		for i, src := range r.srcs {
			m, err := measure(ctx, append(append([]string{self, "-job", r.job, src}, r.more...), out))
			if err != nil {
				return peak, err
			}
			if peak[i] == 0 || m.peak < peak[i] {
				peak[i] = m.peak
			}
		}
		if !grows(peak) {
			break
		}
	}
	return peak, nil
}

func grows(peak [2]int64) bool { return float64(peak[1]) > flatGoal*float64(peak[0]) }

// peaks prints the memory that making each format takes, of a disk and of one
// twice as large with twice the content, of those whose "memory FORMAT" is chosen. It
// names the goals that were missed.
func peaks(ctx context.Context, self, tmp string, from sources, chosen *regexp.Regexp) (missed []string, err error) {
	in := func(name string) string { return filepath.Join(tmp, name) }
	disks, cpios, parts := [2]string{from.disk, in("double.raw")}, [2]string{from.initrd, in("double.cpio")}, [2]string{in("part.raw"), in("double-part.raw")}
	rows := []row{
		{"edit", disks, []string{from.extension}, ""},
		{"qcow2", disks, nil, ""},
		{"zstd.qcow2", disks, nil, ""},
		{"vmdk", disks, nil, ""},
		{"ova", disks, nil, ""},
		{"vhd", disks, nil, ""},
		{"raw.zst", disks, nil, ""},
		{"raw.gz", disks, nil, ""},
		{"img.zst", disks, nil, ""},
		{"raw.xz", parts, nil, fmt.Sprintf("of %d MB of data", partData/1_000_000)},
		{"pxe", disks, []string{from.kernel, from.initrd}, ""},
		{"iso", cpios, []string{from.kernel}, ""},
	}
	rows = slices.DeleteFunc(rows, func(r row) bool { return !chosen.MatchString("memory " + r.job) })
	if len(rows) == 0 {
		return nil, nil
	}
	if err := part(in("part.raw"), from.disk); err != nil {
		return nil, err
	}
	for to, one := range map[string]string{"double.raw": from.disk, "double-part.raw": in("part.raw"), "double.cpio": from.initrd} {
		if err := doubled(ctx, in(to), one); err != nil {
			return nil, err
		}
	}
	fmt.Printf("\n%-20s %12s %12s %12s\n", "peak memory", "", "twice as big", "goal")
	for _, row := range rows {
		peak, err := row.peaks(ctx, self, in("out"))
		if err != nil {
			return nil, err
		}
		var verdict []string
		if max(peak[0], peak[1]) > peakGoal {
			verdict = append(verdict, "too much memory")
		}
		if grows(peak) {
			verdict = append(verdict, "memory grows with the image")
		}
		if len(verdict) > 0 {
			missed = append(missed, row.job+": "+strings.Join(verdict, ", "))
		} else {
			verdict = []string{"met"}
		}
		fmt.Printf("%-20s %9d MB %9d MB %9d MB  %s\n", row.job, peak[0]>>20, peak[1]>>20, peakGoal>>20, strings.Join(append(verdict, row.note), "  "))
	}
	return missed, nil
}

// part makes a disk of the first data of another one. XZ packs no more than a few
// MB in a second, in pieces of 4 MiB: more data would take time and no more memory.
func part(path, disk string) error {
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
	st, err := in.Stat()
	if err != nil {
		return err
	}
	left := int64(partData)
	for off := int64(0); left > 0; {
		data, ok, err := sparse.Next(in, off, st.Size())
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		n := min(data.Length, left)
		if _, err := io.Copy(io.NewOffsetWriter(out, data.Offset), io.NewSectionReader(in, data.Offset, n)); err != nil {
			return err
		}
		off, left = data.Offset+data.Length, left-n
	}
	return out.Truncate(st.Size())
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
