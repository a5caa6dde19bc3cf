package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// served is imagectl serve in a network namespace of its own, at the other end of
// the wire.
type served struct {
	*process
	// ready is how long it took from its start to its readiness line.
	ready time.Duration
}

// serve starts the program.
func (s *storm) serve(ctx context.Context, imagectl, dir string) (*served, error) {
	begin := time.Now()
	p, err := spawn(ctx, "serve", dir, `ip address add `+serverAddress+`/16 dev rack && ip link set rack addrgenmode none txqueuelen 20000 up || exit 1
[ -z "$NEIGHBOURS" ] || ip -batch "$NEIGHBOURS" || exit 1
exec `+imagectl+` serve --state state`,
		[]string{"IMAGECTL_CONFIG=" + filepath.Join(dir, "context.json"), "IMAGECTL_CACHE=" + filepath.Join(dir, "cache"), "NEIGHBOURS=" + s.neighbours}, link{name: "rack"})
	if err != nil {
		return nil, err
	}
	if err := p.says("imagectl serve: ready: "); err != nil {
		return nil, errors.Join(err, p.kill())
	}
	return &served{p, time.Since(begin)}, nil
}

// arm lets every machine be installed, through the operator's own command.
func (v *served) arm(ctx context.Context, imagectl, dir string) error {
	cmd := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(v.cmd.Process.Pid), "--net", imagectl, "machines", "arm", "--all")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "IMAGECTL_CONFIG="+filepath.Join(dir, "context.json"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("arming all machines: %w: %.2000s", err, out)
	}
	return nil
}

var memoryLine = regexp.MustCompile(`(VmHWM|VmRSS):\s+(\d+) kB`)

// memory is the largest and the present resident size in MB.
func (v *served) memory() (peak, now int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.cmd.Process.Pid))
	if err != nil {
		return 0, 0, fmt.Errorf("measuring imagectl serve: %w", err)
	}
	for _, m := range memoryLine.FindAllSubmatch(b, -1) {
		kib, err := strconv.Atoi(string(m[2]))
		if err != nil {
			return 0, 0, err
		}
		if string(m[1]) == "VmHWM" {
			peak = kib >> 10
		} else {
			now = kib >> 10
		}
	}
	return peak, now, nil
}

// processor is the time that it has worked.
func (v *served) processor() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	field := strings.Fields(rest)
	var ticks int
	for _, i := range []int{11, 12} {
		if i < len(field) {
			n, _ := strconv.Atoi(field[i])
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
