package dhcp

import (
	"bufio"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// What real firmware sent (see the -capture flag of pxe/server's tests under
// firmware), answered again: the goldens show who was recognised and what it got.
func TestCapturedFirmware(t *testing.T) {
	captures, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(captures) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for _, path := range captures {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			l := newLab(t)
			// As when it was captured, so that the requests fit the offers.
			l.server = netip.MustParseAddr("10.98.0.1")
			l.src.network = &boot.Network{Subnets: []boot.Subnet{{Prefix: netip.MustParsePrefix("10.98.0.0/24"),
				First: netip.MustParseAddr("10.98.0.11"), Last: netip.MustParseAddr("10.98.0.11"), Lease: time.Hour}}}
			var got strings.Builder
			in := bufio.NewScanner(f)
			for in.Scan() {
				b, err := hex.DecodeString(in.Text())
				if err != nil {
					t.Fatal(err)
				}
				req, err := dhcpv4.FromBytes(b)
				if err != nil {
					t.Fatal(err)
				}
				describe(&got, req, l.send(req))
			}
			golden := strings.TrimSuffix(path, ".hex") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("%s differs (go test -update rewrites it):\n%s", golden, got.String())
			}
		})
	}
}

func describe(w *strings.Builder, req *dhcpv4.DHCPv4, d Decision) {
	fmt.Fprintf(w, "%s from %s, firmware %q, architectures %v\n", req.MessageType(), d.Client.Stage, d.Client.Firmware, d.Client.Archs)
	fmt.Fprintf(w, "  class %q, user class %q, uuid %q\n", req.ClassIdentifier(), req.Options.Get(dhcpv4.OptionUserClassInformation), d.Client.UUID)
	if d.Reply == nil {
		fmt.Fprintf(w, "  silence: %s: %s\n", d.Code, d.Reason)
		return
	}
	r := d.Reply
	fmt.Fprintf(w, "  %s to %s: yiaddr %s, siaddr %s, file %q, option 67 %q, option 60 %q\n", r.MessageType(), d.To, r.YourIPAddr, r.ServerIPAddr,
		r.BootFileName, r.Options.Get(dhcpv4.OptionBootfileName), r.ClassIdentifier())
}
