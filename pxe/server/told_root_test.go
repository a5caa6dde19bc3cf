//go:build root

package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Clients of other hands read the largest packet and the routes, and only they get them
// that ask.
func TestClientsAreToldMTUAndRoutes(t *testing.T) {
	wire, _, _ := second(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "told")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$1: mtu=$mtu routes=$staticroutes router=$router.\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for want, asks := range map[string][]string{
		`^bound: mtu=1500 routes=192\.0\.2\.0/24 10\.97\.0\.99 0\.0\.0\.0/0 10\.97\.0\.1 router=10\.97\.0\.1\.$`: {"-O", "mtu", "-O", "staticroutes"},
		`^bound: mtu= routes= router=10\.97\.0\.1\.$`:                                                            nil,
	} {
		udhcpc := []string{"busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "60", "-T", "1", "-s", script}
		wire.start(append(udhcpc, asks...)...).wait(want)
	}
	config, leases := filepath.Join(dir, "conf"), filepath.Join(dir, "leases")
	if err := os.WriteFile(config, []byte("timeout 900;\noption rfc3442 code 121 = array of unsigned integer 8;\nrequest subnet-mask, routers, interface-mtu, rfc3442;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wire.start(copied(t, "dhclient"), "-4", "-d", "-1", "-cf", config, "-sf", "/bin/true", "-lf", leases, "-pf", filepath.Join(dir, "pid"), "eth0").wait(`^bound to 10\.97\.0\.1`)
	got := string(readFile(t, leases))
	for _, want := range []string{"option interface-mtu 1500;", "option rfc3442 24,192,0,2,10,97,0,99,0,10,97,0,1;"} {
		if !strings.Contains(got, want) {
			t.Errorf("dhclient has no %q in:\n%s", want, got)
		}
	}
}
