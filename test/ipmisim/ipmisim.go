// Package ipmisim runs OpenIPMI's BMC simulator (ipmi_sim, Debian package openipmi): an IPMI
// service that another hand wrote, for tests.
package ipmisim

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// How it is called.
const (
	Address            = "127.0.0.1:6230"
	Username, Password = "imagectl", "s3cret"
)

const lan = `name "test"
set_working_mc 0x20
startlan 1
  addr 127.0.0.1 6230
  priv_limit admin
  allowed_auths_callback none md2 md5 straight
  allowed_auths_user none md2 md5 straight
  allowed_auths_operator none md2 md5 straight
  allowed_auths_admin none md2 md5 straight
  guid a123456789abcdefa123456789abcdef
endlan
user 1 true "" "` + Password + `" user 10 none md2 md5 straight
user 2 true "` + Username + `" "` + Password + `" admin 10 none md2 md5 straight
`

const emulation = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x2a7c 0xf02 persist_sdr
mc_enable 0x20
`

// control is OpenIPMI's chassis_control: DEVICE get WHAT... | set WHAT VALUE..., in the
// directory of the test. What it is told stands in the file log.
const control = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
shift
do=$1; shift
while [ $# -gt 0 ]; do
	what=$1; shift
	case $do in
	get) case $what in
		power|boot) echo "$what:$(cat $what)" ;;
		*) exit 1 ;;
		esac ;;
	set) echo "$what $1" >>log
		./switch "$what" "$1" || exit 1
		shift ;;
	check) exit 0 ;;
	esac
done
`

// Start runs it until the test ends. dir takes its files: power (0 or 1) and boot (a device,
// or none), which are what it says; log, what it was told, a line each; and its program,
// a shell script that is run there with WHAT and VALUE for each of those.
func Start(t testing.TB, dir, program string) {
	t.Helper()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{
		"power": "0\n", "boot": "none\n", "control": control, "switch": "#!/bin/sh\n" + program,
		"lan.conf": lan + "chassis_control \"" + path("control") + " 0x20\"\n", "sim.emu": emulation,
	} {
		if err := os.WriteFile(path(name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("ipmi_sim", "-d", "-n", "-c", path("lan.conf"), "-f", path("sim.emu"), "-s", dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting OpenIPMI's simulator: %v; apt-get install openipmi", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("simulator: %s", out.String())
		}
	})
}
