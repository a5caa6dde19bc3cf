//go:build vm

// Package release_test boots the test release in QEMU and looks whether it
// behaves as the product expects of Flatcar. No KVM, no root, no tap devices:
//
//	go test -tags vm ./test/release -timeout 1h -release DIR -bin DIR [-artifacts -outputdir LOGS]
package release_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serialLast makes the serial port /dev/console, where systemd reports.
const serialLast = `set linux_console="console=tty0 console=ttyS0,115200n8"` + "\n"

func disk(path string) []string {
	return []string{"-drive", "if=none,id=disk,format=raw,cache=unsafe,file=" + path, "-device", "virtio-blk-pci,drive=disk,bootindex=1"}
}

// network is user networking with the guest's port 22 on a loopback address of its
// own. The port is not one that the kernel hands out, so nobody else gets it until
// QEMU listens.
func network() (args []string, ssh string) {
	ssh = fmt.Sprintf("127.%d.%d.%d:20022", 1+rand.N(254), rand.N(256), 1+rand.N(254))
	return []string{"-netdev", "user,id=net,hostfwd=tcp:" + ssh + "-:22", "-device", "virtio-net-pci,netdev=net"}, ssh
}

func ovmf(t *testing.T) []string {
	t.Helper()
	vars := filepath.Join(t.TempDir(), "vars.fd")
	run(t, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", vars)
	return []string{
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
		"-drive", "if=pflash,format=raw,unit=1,file=" + vars,
	}
}

func join(parts ...[]string) []string {
	var all []string
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func wantPrefix(t *testing.T, what, got, want string) {
	t.Helper()
	if !strings.HasPrefix(got, want) {
		t.Errorf("%s: got %q, want %q at its beginning", what, got, want)
	}
}

// wantDoors sees that the ways in that a locked-down image shuts are open here,
// or a test that finds them shut would prove nothing.
func wantDoors(t *testing.T, g *guest, ssh string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", ssh, time.Minute)
	if err != nil {
		t.Fatalf("port 22: %v", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	banner, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatalf("port 22: reading sshd's banner: %v", err)
	}
	wantPrefix(t, "port 22", banner, "SSH-2.0-OpenSSH")
	g.wait(`This is \S+ \(Flatcar stand-in`)
}

func TestDiskBootsOnBIOSFromOEMConfigAndOnlyOnceRunsIgnition(t *testing.T) {
	t.Parallel()
	path := image(t)
	withOEM(t, path, map[string]string{
		"grub.cfg":   serialLast + `set linux_append="standin.oem=sourced"` + "\n",
		"config.ign": config(t, "from-oem", nil),
		"note":       "oem partition",
	})
	if err := os.Truncate(path, 12<<30); err != nil {
		t.Fatal(err)
	}
	nic, ssh := network()
	g := boot(t, join(disk(path), nic)...)
	want(t, "sentinel", g.report("sentinel"), "from-oem")
	want(t, "system", g.report("system"), "running failed=")
	wantPrefix(t, "root", g.report("root"), "ext4 5") // 1784 MiB grown to what 12 GiB leave
	want(t, "OEM mount", g.report("oem"), "oem partition")
	want(t, "core", g.report("core"), "uid=500(core) gid=500(core) groups=500(core),27(sudo),999(systemd-journal),510(wheel),233(docker)")
	want(t, "sudo", g.report("sudo"), "0")
	wantPrefix(t, "containerd", g.report("containerd"), "Client:   Version:  v2.")
	wantPrefix(t, "runc", g.report("runc"), "runc version 1.1")
	want(t, "cgroup", g.report("cgroup"), "cgroup2fs")
	want(t, "user config", g.report("ignition"), "true")
	want(t, "sysext", g.report("sysext"), "started")
	if line := g.report("cmdline"); !strings.Contains(line, "flatcar.first_boot=detected standin.oem=sourced verity.usrhash=") {
		t.Errorf("command line: %s", line)
	}
	id := g.report("machine-id")
	g.report("end")
	wantDoors(t, g, ssh)
	g.stop()
	if table := run(t, "sgdisk", "--print", path); strings.Contains(table, "00000000-0000-0000-0000-000000000001") {
		t.Errorf("the disk GUID was not randomised:\n%s", table)
	}

	again := boot(t, join(disk(path), nic)...)
	want(t, "sentinel on the second boot", again.report("sentinel"), "from-oem")
	want(t, "system on the second boot", again.report("system"), "running failed=")
	want(t, "sysext on the second boot", again.report("sysext"), "started")
	want(t, "machine-id on the second boot", again.report("machine-id"), id)
	again.report("end")
	if again.printed("Ignition:") {
		t.Error("Ignition ran on the second boot")
	}
}

func TestUntouchedDiskBootsOnUEFIFromFirmwareConfigAndTakesKernelArguments(t *testing.T) {
	t.Parallel()
	path := image(t)
	cfg := filepath.Join(t.TempDir(), "config.ign")
	write(t, cfg, config(t, "from-firmware", func(c map[string]any) {
		c["kernelArguments"] = map[string]any{"shouldExist": []string{"standin.added=1"}}
	}))
	nic, _ := network()
	g := boot(t, join(ovmf(t), disk(path), nic, []string{"-fw_cfg", "name=opt/org.flatcar-linux/config,file=" + cfg})...)
	g.wait(`Ignition: kernel arguments changed, rebooting`)
	want(t, "sentinel", g.report("sentinel"), "from-firmware")
	want(t, "system", g.report("system"), "running failed=")
	if line := g.report("cmdline"); !strings.Contains(line, " standin.added=1 ") {
		t.Errorf("command line: %s", line)
	}
}

func TestOneFlippedByteOfUSRStopsTheBoot(t *testing.T) {
	t.Parallel()
	path := image(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	const at = sectorUSRA*512 + 1000
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	nic, _ := network()
	g := boot(t, join(disk(path), nic)...)
	g.wait(`Kernel panic - not syncing: dm-verity device corrupted|BOOT STOPPED: /usr failed verification`)
}

func TestUnknownPlatformStopsTheBoot(t *testing.T) {
	t.Parallel()
	path := image(t)
	withOEM(t, path, map[string]string{"grub.cfg": "set oem_id=opennebula\n"})
	nic, _ := network()
	g := boot(t, join(disk(path), nic)...)
	g.wait(`BOOT STOPPED: Ignition failed`)
}

func TestFirstBootWithoutItsFlagFileStopsTheBoot(t *testing.T) {
	t.Parallel()
	path := image(t)
	withOEM(t, path, map[string]string{"grub.cfg": "set linux_append=\"flatcar.first_boot=detected\"\n"})
	run(t, "mdel", "-i", fmt.Sprintf("%s@@%d", path, sectorESP*512), "::/flatcar/first_boot")
	nic, _ := network()
	g := boot(t, join(disk(path), nic)...)
	g.wait(`BOOT STOPPED: ignition-quench: no first_boot file`)
}

func TestNetworkBootTakesConfigByURLBeforeOEM(t *testing.T) {
	t.Parallel()
	cfg := config(t, "from-url", nil)
	asked := make(chan string, 16)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		_, _ = fmt.Fprint(w, cfg) // a guest that went away shows on its console
	}))
	defer server.Close()
	url := strings.Replace(server.URL, "127.0.0.1", "10.0.2.2", 1) + "/config.ign"

	nic, ssh := network()
	g := boot(t, join(nic, []string{
		"-kernel", released(t, "flatcar_production_pxe.vmlinuz"),
		"-initrd", oemArchive(t, map[string]string{"config.ign": config(t, "from-oem", nil), "note": "oem archive"}),
		"-append", `flatcar.first_boot=1 console=tty0 console=ttyS0 flatcar.autologin=ttyS0 sshkey="ssh-ed25519 AAAA STANDIN" ignition.config.url=` + url,
	})...)
	g.wait(`initrd: network: `)
	want(t, "sentinel", g.report("sentinel"), "from-url")
	want(t, "path asked for", <-asked, "/config.ign")
	want(t, "system", g.report("system"), "running failed=")
	wantPrefix(t, "root", g.report("root"), "tmpfs")
	want(t, "OEM archive", g.report("oem"), "oem archive")
	want(t, "sshkey=", g.report("keys"), "1")
	want(t, "sysext", g.report("sysext"), "started")
	g.wait(`login: core \(automatic login\)`)
	wantDoors(t, g, ssh)
}
