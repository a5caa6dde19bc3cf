package inspect

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// ticks a second in which /proc counts: USER_HZ, which is 100 on every architecture that
// Flatcar has (include/asm-generic/param.h).
const ticks = 100

// Processes are those that there are, threads of the kernel too, by their numbers.
func (s *System) Processes(ctx context.Context) (*api.ProcessesResponse, error) {
	fs, err := s.proc()
	if err != nil {
		return nil, fmt.Errorf("reading processes: %w", err)
	}
	all, err := fs.AllProcs()
	if err != nil {
		return nil, fmt.Errorf("reading processes: %w", err)
	}
	slices.SortFunc(all, func(a, b procfs.Proc) int { return cmp.Compare(a.PID, b.PID) })
	out := &api.ProcessesResponse{}
	var boot time.Time
	if b, err := os.ReadFile(s.path("/proc/stat")); err == nil {
		if boot = bootTime(b); !boot.IsZero() {
			out.Boot = timestamppb.New(boot)
		}
	}
	if m, err := fs.Meminfo(); err == nil {
		out.MemoryTotal, out.MemoryAvailable = deref(m.MemTotalBytes), deref(m.MemAvailableBytes)
	}
	if l, err := fs.LoadAvg(); err == nil {
		out.Load = []float64{l.Load1, l.Load5, l.Load15}
	}
	users := s.users()
	for _, p := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(out.Processes) == processesMax {
			out.Truncated = true
			break
		}
		if m, ok := process(p, boot, users); ok {
			out.Processes = append(out.Processes, m)
		}
	}
	return out, nil
}

// process reads one. It may end at any moment, which is no error: it is left out.
func process(p procfs.Proc, boot time.Time, users map[uint64]string) (*api.NodeProcess, bool) {
	stat, err := p.Stat()
	if err != nil {
		return nil, false
	}
	status, err := p.NewStatus()
	if err != nil {
		return nil, false
	}
	uid := status.UIDs[1] // effective, as ps shows it
	m := &api.NodeProcess{
		Pid: uint32(stat.PID), Parent: uint32(stat.PPID), Uid: uint32(uid), User: users[uid], State: clean(stat.State), Threads: uint32(stat.NumThreads),
		Cpu:      durationpb.New(time.Duration(stat.UTime+stat.STime) * (time.Second / ticks)),
		Resident: status.VmRSS, Name: clean(stat.Comm),
	}
	if !boot.IsZero() {
		m.Started = timestamppb.New(boot.Add(time.Duration(stat.Starttime) * (time.Second / ticks)))
	}
	// A zombie has none either.
	if argv, err := p.CmdLine(); err == nil && len(argv) > 0 {
		line := strings.Join(argv, " ")
		if len(line) > commandMax {
			line = line[:commandMax]
		}
		m.Command = clean(line)
	} else if stat.State != "Z" {
		m.Name = "[" + m.Name + "]"
	}
	if groups, err := p.Cgroups(); err == nil {
		m.Cgroup = clean(cgroup(groups))
	}
	return m, true
}

// cgroup is where systemd has put a process: version 2's, or in version 1 systemd's own.
func cgroup(groups []procfs.Cgroup) string {
	path := ""
	for _, g := range groups {
		if g.HierarchyID == 0 && path == "" || slices.Contains(g.Controllers, "name=systemd") {
			path = g.Path
		}
	}
	if path == "/" {
		return ""
	}
	return path
}

// bootTime is what /proc/stat says; the zero time if it does not.
func bootTime(stat []byte) time.Time {
	for line := range bytes.Lines(stat) {
		if rest, ok := bytes.CutPrefix(line, []byte("btime ")); ok {
			if n, err := strconv.ParseInt(string(bytes.TrimSpace(rest)), 10, 64); err == nil {
				return time.Unix(n, 0)
			}
		}
	}
	return time.Time{}
}

// users by their numbers. Flatcar has those of the system in the second file.
func (s *System) users() map[uint64]string {
	out := map[uint64]string{}
	for _, name := range []string{"/etc/passwd", "/usr/share/baselayout/passwd"} {
		b, err := os.ReadFile(s.path(name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Split(line, ":")
			if len(f) < 3 {
				continue
			}
			if uid, err := strconv.ParseUint(f[2], 10, 32); err == nil && out[uid] == "" {
				out[uid] = clean(f[0])
			}
		}
	}
	return out
}

func deref(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}
