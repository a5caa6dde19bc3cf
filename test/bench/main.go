// Command bench compares what images are made with here with what people use
// otherwise, in one run on one machine: run it with "make bench-images". It
// prints ratios, since only they mean anything elsewhere, and of each its goal and
// whether it was met. A goal that is missed is no error, because a machine that does
// other work may miss one.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/test/vm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	job := flag.String("job", "", "one job of ours, in this process: "+jobNames())
	release := flag.String("release", "", "directory of the test release")
	upstream := flag.String("upstream", "", "directory of Kubernetes' programs")
	runs := flag.Int("runs", 3, "how often everything is measured; the median counts, and what is met twice over is measured once")
	only := flag.String("only", "", "regular expression: measure what matches alone, such as 'vhd' or 'guestfish' or 'memory' or 'memory raw.xz'")
	flag.Parse()
	var err error
	if *job != "" {
		err = runJob(ctx, *job, flag.Args())
	} else {
		err = bench(ctx, *release, *upstream, *runs, *only)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// contest is one thing to do, by us and by another program.
type contest struct {
	what string
	// ours and theirs write a file whose name is the last argument.
	ours, theirs []string
	// other names theirs.
	other string
	// goal is the smallest number of times by which we are to be faster.
	goal float64
	// bySize is set when our file may not be larger than theirs.
	bySize bool
}

func bench(ctx context.Context, release, upstream string, runs int, only string) error {
	began := time.Now()
	chosen, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("choosing what to measure: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("/var/tmp", "imagectl-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	packed, err := filepath.Glob(filepath.Join(release, "*/amd64-usr/[0-9]*/flatcar_production_image.bin.bz2"))
	if err != nil || len(packed) == 0 {
		return fmt.Errorf("looking for the test release in %q: it has no CHANNEL/amd64-usr/VERSION/flatcar_production_image.bin.bz2; run make release", release)
	}
	dir := filepath.Dir(packed[0])
	kernel, initrd := filepath.Join(dir, "flatcar_production_pxe.vmlinuz"), filepath.Join(dir, "flatcar_production_pxe_image.cpio.gz")
	base, image, edited := filepath.Join(tmp, "base.raw"), filepath.Join(tmp, "disk.raw"), filepath.Join(tmp, "edited.raw")
	if err := runJob(ctx, "bunzip2", []string{packed[0], base}); err != nil {
		return err
	}
	extension, err := prepare(ctx, base, image, upstream)
	if err != nil {
		return err
	}
	if err := runJob(ctx, "edit", []string{base, extension, edited}); err != nil {
		return err
	}
	if err := printMachine(image); err != nil {
		return err
	}
	accel := string(vm.ProbeAccel(ctx, kernel))
	out := func(argv ...string) []string { return append(argv, filepath.Join(tmp, "out")) }
	shell := func(script string, args ...string) []string {
		return append([]string{"sh", "-c", script, "sh"}, args...)
	}
	cpus := fmt.Sprint(runtime.NumCPU())
	contests := []contest{
		{"unpack the release", out(self, "-job", "bunzip2", packed[0]), out(shell(`lbzip2 -d -n "$1" <"$2" >"$3"`, cpus, packed[0])...), "lbzip2", 1 / 1.5, false},
		{"add an extension", out(self, "-job", "edit", base, extension), out("cp", "--sparse=always", edited), "cp of the result", 1 / 1.5, false},
		{"add an extension", out(self, "-job", "edit", base, extension), out(shell(guestfish, accel, base, extension)...), "guestfish, " + accel, 10, false},
		{"qcow2, deflate", out(self, "-job", "qcow2", image), out("qemu-img", "convert", "-O", "qcow2", "-c", image), "qemu-img -c", 4, true},
		{"qcow2, zstd", out(self, "-job", "zstd.qcow2", image), out("qemu-img", "convert", "-O", "qcow2", "-c", "-m", "2", "-W", "-o", "compression_type=zstd", image), "qemu-img -c -m 2 -W", 1, true},
		{"vmdk", out(self, "-job", "vmdk", image), out("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", image), "qemu-img", 4, false},
		// Both have the kernel copy the same bytes: a tie, give or take a tenth.
		{"vhd", out(self, "-job", "vhd", image), out("qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed,force_size", image), "qemu-img", 0.9, false},
		{"raw.gz", out(self, "-job", "raw.gz", image), out(shell(`gzip -c "$1" >"$2"`, image)...), "gzip", 1, false},
		{"img.zst", out(self, "-job", "img.zst", image), out(shell(`zstd -q -T0 -c "$1" >"$2"`, image)...), "zstd -T0", 1, false},
	}
	var missed []string
	for _, c := range contests {
		if !chosen.MatchString(c.what + " " + c.other) {
			continue
		}
		verdict, err := c.run(ctx, runs)
		if err != nil {
			return err
		}
		if verdict != "" {
			missed = append(missed, c.what+" against "+c.other+":"+verdict)
		}
	}
	large, err := peaks(ctx, self, tmp, sources{disk: base, extension: extension, kernel: kernel, initrd: initrd}, chosen)
	if err != nil {
		return err
	}
	missed = append(missed, large...)
	fmt.Printf("\nload %s after the run, which took %s\n", load(), time.Since(began).Round(time.Second))
	if len(missed) == 0 {
		fmt.Println("all goals met")
		return nil
	}
	fmt.Printf("goals missed: %d\n", len(missed))
	for _, m := range missed {
		fmt.Println("  " + m)
	}
	return nil
}

// guestfish is what people do who have no tool for it: the accelerator, the base,
// the extension, the result. It starts a virtual machine, and takes /dev/kvm where
// it is there, even where nothing boots under it. OEM and ROOT have the numbers 6
// and 9 in every Flatcar image.
const guestfish = `export LIBGUESTFS_BACKEND=direct
[ "$1" = kvm ] || export LIBGUESTFS_BACKEND_SETTINGS=force_tcg
cp --sparse=always "$2" "$4" && guestfish --format=raw -a "$4" <<END
run
mount /dev/sda9 /
mkdir-p /opt/extensions/bench
upload $3 /opt/extensions/bench/bench.raw
umount /
mount /dev/sda6 /
write /config.ign '{"ignition":{"version":"3.4.0"}}'
END`

// printMachine says on what the figures were found.
func printMachine(image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	data, err := sparse.DataBytes(f, st.Size())
	if err != nil {
		return err
	}
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			model = strings.TrimSpace(strings.TrimLeft(line, "\t :"))
		}
	}
	fmt.Printf("%d processors (%s), load %s before the run; a disk of %.1f GiB with %.2f GB of data\n", runtime.NumCPU(), model, load(), float64(st.Size())/(1<<30), float64(data)/1e9)
	fmt.Printf("%-20s %-20s %8s %8s %8s %7s %9s %9s %8s %5s\n", "", "against", "ours", "theirs", "ratio", "goal", "our size", "theirs", "our peak", "runs")
	return nil
}

// load is the average of the last minute.
func load() string {
	first, _, _ := strings.Cut(readFile("/proc/loadavg"), " ")
	return first
}

func readFile(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "?"
	}
	return string(b)
}

// measured is one run of a program.
type measured struct {
	took time.Duration
	size int64
	// peak memory in bytes.
	peak int64
}

// run prints a contest's line; verdict is empty when its goal is met.
func (c contest) run(ctx context.Context, runs int) (verdict string, err error) {
	if missing := c.missing(); missing != "" {
		fmt.Printf("%-20s %-20s not compared: %s is not installed\n", c.what, c.other, missing)
		return "", nil
	}
	var ours, theirs []measured
	// In turns, so that what else the machine does hits both.
	for range runs {
		for _, side := range []struct {
			argv []string
			to   *[]measured
		}{{c.ours, &ours}, {c.theirs, &theirs}} {
			m, err := measure(ctx, side.argv)
			if err != nil && side.to == &theirs && ctx.Err() == nil {
				fmt.Printf("%-20s %-20s not compared: %v\n", c.what, c.other, err)
				return "", nil
			}
			if err != nil {
				return "", err
			}
			*side.to = append(*side.to, m)
		}
		// Nothing makes one run twice as slow as the next but once in a long while.
		if ours[0].took.Seconds()*c.goal*2 < theirs[0].took.Seconds() {
			break
		}
	}
	n := len(ours)
	a, b := median(ours), median(theirs)
	ratio := b.took.Seconds() / a.took.Seconds()
	if ratio < c.goal {
		verdict = "  too slow"
	}
	if c.bySize && a.size > b.size {
		verdict += "  too large"
	}
	if a.peak > peakGoal {
		verdict += "  too much memory"
	}
	fmt.Printf("%-20s %-20s %7.2fs %7.2fs %7.2fx %6.2fx %8.1fM %8.1fM %5d MB %5d%s\n", c.what, c.other, a.took.Seconds(), b.took.Seconds(), ratio, c.goal, float64(a.size)/1e6, float64(b.size)/1e6, a.peak>>20, n, cmp.Or(verdict, "  met"))
	return verdict, nil
}

// missing names a program that the other side lacks.
func (c contest) missing() string {
	for _, name := range []string{c.theirs[0], strings.Trim(strings.Fields(c.other)[0], ",")} {
		if _, err := exec.LookPath(name); err != nil {
			return name
		}
	}
	return ""
}

// median is the run in the middle by time.
func median(m []measured) measured {
	slices.SortFunc(m, func(a, b measured) int { return cmp.Compare(a.took, b.took) })
	return m[len(m)/2]
}

func measure(ctx context.Context, argv []string) (measured, error) {
	out := argv[len(argv)-1]
	if err := os.Remove(out); err != nil && !errors.Is(err, os.ErrNotExist) {
		return measured{}, err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// What the run before has written is still on its way to the disk.
	syscall.Sync()
	start := time.Now()
	said, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		return measured{}, fmt.Errorf("running %q: %w\n%s", argv, err, said)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(out, &st); err != nil {
		return measured{}, err
	}
	m := measured{took: took, size: st.Blocks * 512}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.peak = u.Maxrss << 10
	}
	return m, nil
}
