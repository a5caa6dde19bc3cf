//go:build vm

package release_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var releaseDir = flag.String("release", "", "the --out directory of test/release/build")

// Sector numbers of Flatcar >= 4593's layout that the tests touch.
const (
	sectorESP  = 4096
	sectorUSRA = 2105344
	sectorOEM  = 10493952
	oemSize    = 1 << 30 // bytes
)

// released is the path of a published file.
func released(t *testing.T, name string) string {
	t.Helper()
	if *releaseDir == "" {
		t.Fatal("which release? go test -tags vm ./test/release -release DIR (made by test/release/build --out DIR)")
	}
	path, err := filepath.Abs(filepath.Join(*releaseDir, "stable/amd64-usr/current", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a program that has to succeed and returns what it printed.
func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// image unpacks the published disk image into a sparse file.
func image(t *testing.T) string {
	t.Helper()
	unpacked.Do(func() {
		run(t, "sh", "-c", `lbzip2 -dc "$1" | dd of="$2" bs=1M iflag=fullblock conv=sparse status=none && truncate -s 8455716864 "$2"`,
			"sh", released(t, "flatcar_production_image.bin.bz2"), filepath.Join(shared, "disk.bin"))
	})
	path := filepath.Join(t.TempDir(), "disk.bin")
	run(t, "cp", "--sparse=always", filepath.Join(shared, "disk.bin"), path)
	return path
}

// shared is a directory for all tests, and unpacked says that the published
// image is in it: bzip2 takes longer than some of the tests.
var (
	shared   string
	unpacked sync.Once
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "release-test-")
	if err != nil {
		panic(err)
	}
	shared = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// withOEM replaces the OEM partition of a disk by a btrfs of these files.
func withOEM(t *testing.T, disk string, files map[string]string) {
	t.Helper()
	dir, fs := t.TempDir(), filepath.Join(t.TempDir(), "oem.img")
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
	write(t, fs, "")
	if err := os.Truncate(fs, oemSize); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.btrfs", "-q", "-f", "--mixed", "-m", "single", "-d", "single", "--rootdir", dir, "-L", "OEM", fs)
	// Zeros too: whatever the partition held must not show through.
	run(t, "dd", "if="+fs, "of="+disk, "bs=1M", fmt.Sprintf("seek=%d", sectorOEM/2048), "conv=notrunc", "status=none")
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// oemArchive is a PXE initrd: the release's archive with a second one behind it
// that holds usr/share/oem.
func oemArchive(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(dir, "usr/share/oem", name), content)
	}
	cpio := run(t, "sh", "-c", `cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc`, "sh", dir)
	base, err := os.ReadFile(released(t, "flatcar_production_pxe_image.cpio.gz"))
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBuffer(base)
	z := gzip.NewWriter(out)
	if _, err := z.Write([]byte(cpio)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initrd")
	write(t, path, out.String())
	return path
}

// extension is a system extension whose unit is held up by multi-user.target
// and says so on the console.
func extension(t *testing.T) []byte {
	t.Helper()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "probe.raw")
	write(t, filepath.Join(dir, "usr/lib/extension-release.d/extension-release.probe"), "ID=flatcar\nSYSEXT_LEVEL=1.0\n")
	write(t, filepath.Join(dir, "usr/lib/systemd/system/multi-user.target.d/10-probe.conf"), "[Unit]\nUpholds=probe.service\n")
	write(t, filepath.Join(dir, "usr/lib/systemd/system/probe.service"),
		"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo REPORT sysext=started > /dev/kmsg'\n")
	run(t, "mksquashfs", dir, out, "-quiet", "-no-progress", "-all-root")
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// reportScript prints what a test wants to know, one `REPORT name=value` each.
const reportScript = `
say() { echo "REPORT $1=$2" > /dev/kmsg; }
say sentinel "$(cat /etc/sentinel)"
say system "$(systemctl is-system-running --wait) failed=$(systemctl --failed --no-legend --plain | cut -d' ' -f1 | paste -sd,)"
say root "$(findmnt -no FSTYPE /) $(($(stat -f -c '%S * %b' /) >> 20)) MiB"
say oem "$(cat /oem/note)"
say machine-id "$(cat /etc/machine-id)"
say core "$(id core)"
say sudo "$(sudo -u core sudo -n id -u)"
say keys "$(grep -c STANDIN /home/core/.ssh/authorized_keys)"
say containerd "$(ctr version | paste -sd' ')"
say runc "$(runc --version | head -n 1)"
say cgroup "$(stat -f -c %T /sys/fs/cgroup)"
say ignition "$(cat /etc/.ignition-result.json | jq -c .userConfigProvided)"
say cmdline "$(cat /proc/cmdline)"
say end end
`

// config is an Ignition configuration that reports, with sentinel in it, and
// with what edit adds.
func config(t *testing.T, sentinel string, edit func(map[string]any)) string {
	t.Helper()
	inline := func(data []byte) map[string]any {
		return map[string]any{"source": "data:;base64," + base64.StdEncoding.EncodeToString(data)}
	}
	c := map[string]any{
		"ignition": map[string]any{"version": "3.4.0"},
		"storage": map[string]any{
			"files": []any{
				map[string]any{"path": "/etc/sentinel", "contents": inline([]byte(sentinel))},
				map[string]any{"path": "/etc/report.sh", "contents": inline([]byte(reportScript))},
				map[string]any{"path": "/opt/extensions/probe.raw", "contents": inline(extension(t))},
			},
			"links": []any{
				map[string]any{"path": "/etc/extensions/probe.raw", "target": "/opt/extensions/probe.raw"},
			},
		},
		"systemd": map[string]any{
			"units": []any{map[string]any{
				"name": "report.service", "enabled": true,
				"contents": "[Unit]\nAfter=containerd.service sshd.socket\n[Service]\nExecStart=/bin/bash /etc/report.sh\n[Install]\nWantedBy=multi-user.target\n",
			}},
		},
	}
	if edit != nil {
		edit(c)
	}
	out, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
