//go:build root

package server_test

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/test/vm"
)

// insideVariable says that the test runs in a Linux that has VLANs.
const insideVariable = "IMAGECTL_TEST_INSIDE"

// One of the server's networks is VLAN 42 of a card whose cable is a trunk: clients that
// tag their frames so get its addresses and files, those on the same cable with another
// tag or none get silence. A host's kernel may have no 802.1Q (and then this test shows as
// much as it does elsewhere), so it runs in a Linux of its own.
func TestVLANInterface(t *testing.T) {
	if os.Getenv(insideVariable) == "" {
		inLinux(t)
		return
	}
	trunk := newHost(t, "trunk")
	trunk.must("ip", "link", "add", "trunk", "type", "veth", "peer", "name", "cable", "netns", strconv.Itoa(trunk.pid))
	trunk.must("ip", "link", "set", "trunk", "up")
	trunk.must(trunk.inside("ip", "link", "set", "cable", "up")...)
	tagged := func(id string) {
		trunk.must(trunk.inside("ip", "link", "add", "link", "cable", "name", "cable."+id, "type", "vlan", "id", id)...)
		trunk.must(trunk.inside("ip", "link", "set", "cable."+id, "up")...)
	}
	tagged("42")
	tagged("43")
	const card = "trunk.42"
	trunk.must("ip", "link", "add", "link", "trunk", "name", card, "type", "vlan", "id", "42")
	trunk.must("ip", "address", "add", relayAddr+"/24", "dev", card)
	trunk.must("ip", "link", "set", card, "up")
	startRack(t, nil, nil, func(l *listen.Config, _ *server.Config) {
		l.Links = []listen.Link{{Interface: card, Prefix: netip.MustParsePrefix("10.97.0.0/24")}}
	})

	on := func(card string, args []string) []string { return append(args[:len(args)-1:len(args)-1], card) }
	udhcpc := func(card, times string) *process {
		return trunk.start("busybox", "udhcpc", "-i", card, "-f", "-n", "-q", "-t", times, "-T", "1", "-s", "/bin/true")
	}
	udhcpc("cable.42", "180").wait(`lease of 10\.97\.0\.1[01]\d obtained from 10\.97\.0\.1,`)
	trunk.start(on("cable.42", dhclient(t))...).wait(`^DHCPACK of 10\.97\.0\.1[01]\d from 10\.97\.0\.1$`)
	for _, card := range []string{"cable.43", "cable"} {
		udhcpc(card, "3").wait(`no lease, failing`)
	}

	trunk.must(trunk.inside("ip", "address", "add", "10.97.0.99/24", "dev", "cable.42")...)
	trunk.must(trunk.inside("ip", "route", "add", "default", "via", relayAddr)...)
	to := filepath.Join(t.TempDir(), "undionly.kpxe")
	trunk.must(trunk.inside("busybox", "tftp", "-g", "-r", "undionly.kpxe", "-l", to, serverAddr)...)
	if !bytes.Equal(readFile(t, to), readFile(t, "/usr/lib/ipxe/undionly.kpxe")) {
		t.Error("what came by TFTP over the VLAN is another file")
	}
}

// inLinux runs the test that calls it in a Linux that has VLANs.
func inLinux(t *testing.T) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := vm.RunLinux(ctx, "testdata/vlan.sh", t.TempDir(), "mem=512M", "BINARY="+binary, "TEST="+t.Name(), insideVariable+"=yes", releaseVariable+"="+os.Getenv(releaseVariable))
	if err != nil {
		t.Fatalf("%v; it printed:\n%s", err, out)
	}
	if passed := "--- PASS: " + t.Name() + " "; !bytes.Contains(out, []byte(passed)) {
		t.Fatalf("there is no %q in:\n%s", passed, out)
	}
	t.Logf("%s", out)
}
