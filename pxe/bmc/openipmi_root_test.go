//go:build root

package bmc

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// OpenIPMI's BMC simulator judges our IPMI: another hand wrote it. Its chassis is a
// script that keeps power and boot device in files.
func startSimulator(t *testing.T) (Target, string) {
	t.Helper()
	dir := t.TempDir()
	chassis := filepath.Join(dir, "chassis")
	write(t, chassis, 0o755, `#!/bin/sh
# OpenIPMI's chassis_control: DEVICE get WHAT... | set WHAT VALUE...
cd `+dir+`
shift
do=$1; shift
while [ $# -gt 0 ]; do
	what=$1; shift
	case $do in
	get) case $what in
		power) echo "power:$(cat power)" ;;
		boot) echo "boot:$(cat boot)" ;;
		*) exit 1 ;;
		esac ;;
	set) case $what in
		power|boot) echo "$1" >$what; echo "$what $1" >>log ;;
		shutdown|reset) echo "$what" >>log ;;
		esac
		shift ;;
	check) exit 0 ;;
	esac
done
`)
	write(t, filepath.Join(dir, "power"), 0o644, "0\n")
	write(t, filepath.Join(dir, "boot"), 0o644, "none\n")
	write(t, filepath.Join(dir, "lan.conf"), 0o644, `
name "test"
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
chassis_control "`+chassis+` 0x20"
user 1 true "" "s3cret" user 10 none md2 md5 straight
user 2 true "imagectl" "s3cret" admin 10 none md2 md5 straight
`)
	write(t, filepath.Join(dir, "sim.emu"), 0o644, "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x2a7c 0xf02 persist_sdr\nmc_enable 0x20\n")
	cmd := exec.Command("ipmi_sim", "-d", "-n", "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "sim.emu"), "-s", dir)
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
	return Target{Kind: IPMI, Address: "127.0.0.1:6230", Username: "imagectl", Password: "s3cret", patience: 20}, dir
}

func write(t *testing.T, path string, mode os.FileMode, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestOpenIPMIsSimulatorIsBootedFromTheNetwork(t *testing.T) {
	target, dir := startSimulator(t)
	ctx := t.Context()
	var c Controller
	for try := 0; ; try++ {
		var err error
		if c, err = Open(ctx, target, Sleep); err == nil {
			break
		}
		var e *Error
		if try == 120 || !errors.As(err, &e) || e.Answer != "no answer" && !strings.Contains(e.Answer, "refused") {
			t.Fatal(err)
		}
		if err := Sleep(ctx, 500*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	defer c.Close()
	if got := c.Info().Manufacturer; got != "Supermicro" {
		t.Errorf("got manufacturer %q", got)
	}
	if err := Boot(ctx, c, Sleep, PXE, always, func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	if err := Cycle(ctx, c, Sleep); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("boot pxe\npower 1\npower 0\npower 1\n", string(log)); diff != "" {
		t.Error(diff)
	}
	target.Password = "guess"
	want := "asking ipmi 127.0.0.1:6230: login: the login was refused; are bmc.username and bmc.password right, and is the account an operator at the BMC?"
	if _, err := Open(ctx, target, Sleep); err == nil || err.Error() != want {
		t.Errorf("a wrong password: got %v", err)
	}
}
