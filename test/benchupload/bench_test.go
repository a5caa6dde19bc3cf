//go:build bench

// Package benchupload measures how fast images are sent to platforms, against curl's
// PUT of the same file in the same run. Run it with "make bench-upload".
//
// A platform is played by a sink in this process: it speaks as much of the protocol
// as one upload needs, throws the bytes away, and computes the digest that the real
// one computes, over curl's bytes as over ours. vSphere is govmomi's simulator, and
// libvirt is libvirtd. Each upload is a process of its own, whose memory is told.
//
// Goals that are missed are said, and are no error: a machine that does other work
// may miss one.
package benchupload

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	speedGoal  = 0.8
	memoryGoal = 64 << 10 // KiB
)

var (
	release   = flag.String("release", "", "the test release, whose image is sent; without one, noise is")
	megabytes = flag.Int64("size", 1024, "data of the image in MiB; the image with zeros has as much again")
	runs      = flag.Int("runs", 3, "how often everything is measured; the median counts")
	profiles  = flag.String("profiles", "", "directory for a profile of each upload's processor time, the last of each target")
	only      = flag.String("only", "", "measure the targets whose name begins so")
)

// jobEnv has the process under test do its work.
const jobEnv = "IMAGECTL_BENCH_UPLOAD"

func TestMain(m *testing.M) {
	if text := os.Getenv(jobEnv); text != "" {
		if err := work(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// contest is one target, and where its bytes and curl's go.
type contest struct {
	name string
	job  job
	// curl is the file that curl sends, and its URL.
	file, url string
	// sent is how many bytes of the image arrived since the last call; 0 where nobody
	// counts: then what the process's connections carried is told.
	sent func() int64
	// check looks at what arrived, and makes room.
	check func(t *testing.T)
	// hand are other ways to the same server.
	hand []byHand
	note string
}

// figures of one run.
type figures struct {
	seconds, cpu float64
	sent         int64
	peak         int // KiB
}

func TestUploadsAreAsFastAsCurl(t *testing.T) {
	dir := t.TempDir()
	images := makeImages(t, dir)
	all := contests(t, images)
	fmt.Printf("the image: %s; with zeros it has %d MiB\n", images.what, 2**megabytes)
	fmt.Printf("%-22s %9s %9s %6s %7s %7s %9s %8s\n", "target", "ours MB/s", "curl MB/s", "ratio", "cpu s", "curl's", "MB sent", "peak MiB")
	for _, c := range all {
		if !strings.HasPrefix(c.name, *only) {
			continue
		}
		t.Run(c.name, c.hold)
	}
	if strings.HasPrefix(fetched, *only) {
		t.Run(fetched, func(t *testing.T) { platformsFetch(t, dir, images.dense) })
	}
}

func (c contest) hold(t *testing.T) {
	var mine, theirs []figures
	hands := make([][]figures, len(c.hand))
	// The first round warms the caches.
	for round := range *runs + 1 {
		c.sent()
		theirs = append(theirs, curl(t, c.file, c.url))
		c.sent()
		f := run(t, c.job)
		if n := c.sent(); n > 0 {
			f.sent = n
		}
		if c.check != nil {
			c.check(t)
		}
		mine = append(mine, f)
		for i, h := range c.hand {
			if f := h.run(t); round > 0 {
				hands[i] = append(hands[i], f)
			}
		}
		if round == 0 {
			mine, theirs = nil, nil
		}
	}
	m := median(mine)
	c.print(t, m, median(theirs))
	for i, h := range c.hand {
		f := median(hands[i])
		fmt.Printf("    %-28s %9.1f s, ours %.1f s: %.2f times as fast as by hand; %.2f s of the processor here\n", h.name, f.seconds, m.seconds, f.seconds/m.seconds, f.cpu)
	}
}

func median(all []figures) figures {
	slices.SortFunc(all, func(a, b figures) int { return int(1e9 * (a.seconds - b.seconds)) })
	m := all[len(all)/2]
	for _, f := range all {
		m.peak = max(m.peak, f.peak)
	}
	return m
}

func (c contest) print(t *testing.T, mine, theirs figures) {
	t.Helper()
	st, err := os.Stat(c.file)
	if err != nil {
		t.Fatal(err)
	}
	size := float64(st.Size())
	ratio := theirs.seconds / mine.seconds
	missed := ""
	if ratio < speedGoal {
		missed += fmt.Sprintf(" MISSED: speed, goal %.1f", speedGoal)
	}
	if mine.peak > memoryGoal {
		missed += fmt.Sprintf(" MISSED: memory, goal %d MiB", memoryGoal>>10)
	}
	fmt.Printf("%-22s %9.0f %9.0f %6.2f %7.2f %7.2f %9.1f %8.1f%s %s\n", c.name, size/mine.seconds/1e6, size/theirs.seconds/1e6, ratio,
		mine.cpu, theirs.cpu, float64(mine.sent)/1e6, float64(mine.peak)/1024, missed, c.note)
}

// curl puts a file.
func curl(t *testing.T, file, url string) figures {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "curl", "-sS", "-f", "-o", "/dev/null", "-w", "%{time_total} %{size_upload}", "-H", "Expect:", "-T", file, url)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("curl: %v: %s", err, errs.String())
	}
	var f figures
	if _, err := fmt.Sscan(out.String(), &f.seconds, &f.sent); err != nil {
		t.Fatalf("curl says %q: %v", out.String(), err)
	}
	f.cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return f
}

// run uploads in a process of its own.
func run(t *testing.T, j job) figures {
	t.Helper()
	if *profiles != "" {
		j.Profile = path(*profiles, j.Target+".pprof")
	}
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), jobEnv+"="+string(text))
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", j.Target, err, errs.String())
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%s says %q: %v", j.Target, out.String(), err)
	}
	return figures{seconds: r.Seconds, cpu: r.CPU, peak: r.Peak, sent: r.Bytes}
}

// serve runs a sink until the test ends.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// counter is how many bytes came since it was asked.
type counter struct{ n atomic.Int64 }

func (c *counter) sent() int64 { return c.n.Swap(0) }

func path(dir, name string) string { return filepath.Join(dir, name) }
