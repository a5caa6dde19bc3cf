package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// statfsTime is how long one file system may take to say how full it is.
const statfsTime = 2 * time.Second

// Disks are the block devices that hold something, and what is mounted.
func (s *System) Disks(ctx context.Context) (*api.DisksResponse, error) {
	mounts, err := s.mounts()
	if err != nil {
		return nil, err
	}
	names, err := os.ReadDir(s.path("/sys/class/block"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading block devices: %w", err)
	}
	out := &api.DisksResponse{}
	for _, e := range names {
		// Empty drives and unused loop devices have no size.
		if d := s.blockDevice(e.Name(), mounts); d.GetSize() > 0 && !strings.HasPrefix(d.GetName(), "ram") {
			out.Devices = append(out.Devices, d)
		}
	}
	slices.SortFunc(out.Devices, func(a, b *api.NodeBlockDevice) int {
		return cmp.Or(cmp.Compare(cmp.Or(a.GetParent(), a.GetName()), cmp.Or(b.GetParent(), b.GetName())), cmp.Compare(len(a.GetName()), len(b.GetName())), cmp.Compare(a.GetName(), b.GetName()))
	})
	for _, m := range mounts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(out.FileSystems) == mountsMax {
			break
		}
		if worthShowing(m) {
			out.FileSystems = append(out.FileSystems, s.fileSystem(ctx, m))
		}
	}
	return out, nil
}

func (s *System) blockDevice(name string, mounts []*procfs.MountInfo) *api.NodeBlockDevice {
	dir := filepath.Join("/sys/class/block", name)
	d := &api.NodeBlockDevice{
		Name: clean(name), Type: s.deviceType(dir, name), Size: 512 * s.number(dir, "size"),
		ReadOnly: s.word(dir, "ro") == "1", Removable: s.word(dir, "removable") == "1",
	}
	whole := dir
	if d.Type == "part" {
		// Where the link leads, a partition lies in its disk's directory.
		if real, err := filepath.EvalSymlinks(s.path(dir)); err == nil {
			d.Parent = clean(filepath.Base(filepath.Dir(real)))
			whole = filepath.Join("/sys/class/block", d.Parent)
		}
	}
	d.Rotational = s.word(whole, "queue", "rotational") == "1"
	udev := s.udev(s.word(dir, "dev"))
	d.FileSystem, d.Label, d.PartLabel = udev["ID_FS_TYPE"], udev["ID_FS_LABEL"], udev["ID_PART_ENTRY_NAME"]
	if d.Type == "disk" {
		d.Model = s.word(dir, "device", "model")
		d.Serial = cmp.Or(s.word(dir, "device", "serial"), s.word(dir, "serial"), udev["ID_SERIAL_SHORT"])
	}
	number := s.word(dir, "dev")
	for _, m := range mounts {
		// Btrfs mounts bear a number of their own.
		if m.MajorMinorVer == number || m.Source == "/dev/"+name {
			d.Mounts = append(d.Mounts, clean(m.MountPoint))
		}
	}
	if all, err := os.ReadDir(s.path(filepath.Join(dir, "holders"))); err == nil {
		for _, h := range all {
			d.Holders = append(d.Holders, clean(h.Name()))
		}
	}
	return d
}

func (s *System) deviceType(dir, name string) string {
	has := func(file string) bool {
		_, err := os.Stat(s.path(filepath.Join(dir, file)))
		return err == nil
	}
	switch {
	case has("partition"):
		return "part"
	case has("dm"):
		return "dm"
	case has("md"):
		return "md"
	case strings.HasPrefix(name, "loop"):
		return "loop"
	case strings.HasPrefix(name, "sr"):
		return "rom"
	case strings.HasPrefix(name, "zram"):
		return "zram"
	}
	return "disk"
}

// udev is what udev has found on a device, by its number: lines "E:KEY=VALUE" in its record
// (systemd's src/libsystemd/sd-device; no interface of it, but lsblk reads the same).
func (s *System) udev(number string) map[string]string {
	out := map[string]string{}
	if number == "" {
		return out
	}
	b, err := os.ReadFile(s.path("/run/udev/data/b" + number))
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(b)) {
		if kv, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "E:"); ok {
			k, v, _ := strings.Cut(kv, "=")
			out[k] = clean(v)
		}
	}
	return out
}

func (s *System) mounts() ([]*procfs.MountInfo, error) {
	fs, err := s.proc()
	if err == nil {
		var self procfs.Proc
		if self, err = fs.Self(); err == nil {
			var all []*procfs.MountInfo
			if all, err = self.MountInfo(); err == nil {
				for _, m := range all {
					m.MountPoint, m.Source = unescape(m.MountPoint), unescape(m.Source)
				}
				return all, nil
			}
		}
	}
	return nil, fmt.Errorf("reading mounts: %w", err)
}

// unescape undoes what the kernel does to white space and backslashes (proc_pid_mountinfo(5)).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// worthShowing leaves out file systems of the kernel's own, which have no size, and the
// mounts of single containers, of which there are hundreds.
func worthShowing(m *procfs.MountInfo) bool {
	switch m.FSType {
	case "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "debugfs", "tracefs", "securityfs", "pstore", "bpf", "configfs",
		"fusectl", "hugetlbfs", "autofs", "binfmt_misc", "efivarfs", "nsfs", "rpc_pipefs", "selinuxfs", "ramfs":
		return false
	}
	return !strings.HasPrefix(m.MountPoint, "/run/containerd/")
}

func (s *System) fileSystem(ctx context.Context, m *procfs.MountInfo) *api.NodeFileSystem {
	out := &api.NodeFileSystem{Target: clean(m.MountPoint), Source: clean(m.Source), Type: clean(m.FSType)}
	for k, v := range m.Options {
		if v != "" {
			k += "=" + v
		}
		out.Options = append(out.Options, clean(k))
	}
	slices.Sort(out.Options)
	st, err := s.statfs(ctx, s.path(m.MountPoint))
	if err != nil {
		out.Error = clean(err.Error())
		return out
	}
	block := uint64(st.Frsize)
	out.Size, out.Used, out.Available = st.Blocks*block, (st.Blocks-st.Bfree)*block, st.Bavail*block
	out.Inodes, out.InodesFree = st.Files, st.Ffree
	return out
}

// statfs asks one file system, and waits a bounded time: a network file system whose server is
// gone answers never, and the goroutine that asked it stays until it does.
func (s *System) statfs(ctx context.Context, name string) (unix.Statfs_t, error) {
	select {
	case s.Stuck <- struct{}{}:
	default:
		return unix.Statfs_t{}, errors.New("not asked: too many file systems do not answer")
	}
	type answer struct {
		st  unix.Statfs_t
		err error
	}
	got := make(chan answer, 1)
	go func() {
		defer func() { <-s.Stuck }()
		var a answer
		a.err = unix.Statfs(name, &a.st)
		got <- a
	}()
	ctx, cancel := context.WithTimeout(ctx, statfsTime)
	defer cancel()
	select {
	case a := <-got:
		return a.st, a.err
	case <-ctx.Done():
		return unix.Statfs_t{}, fmt.Errorf("it did not answer within %s", statfsTime)
	}
}
