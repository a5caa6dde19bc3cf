package cli

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestLockScripts runs imagectl lock against a mirror of its own. Beside exits
// there are:
//
//	release SIGNER   publish three small files signed by current, expired (a
//	                 subkey of 2015 that lived a year, when it was good) or
//	                 stranger; a second argument is the image instead
//	flip FILE        change one bit in the middle
//	cut FILE         drop the last byte
//	pcap HEX FILE    the messages of a capture in hexadecimal, as tcpdump writes them
func TestLockScripts(t *testing.T) {
	p := newPublisher(t)
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/lock",
		UpdateScripts: *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"release": p.release,
			"flip": func(ts *testscript.TestScript, neg bool, args []string) {
				change(ts, args, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
			},
			"pcap": pcap,
			"cut": func(ts *testscript.TestScript, neg bool, args []string) {
				change(ts, args, func(b []byte) []byte { return b[:len(b)-1] })
			},
		},
	})
}

// pcap writes DHCP messages of clients, one in each line, as frames a second apart.
func pcap(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: pcap HEX FILE")
	}
	out, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	defer out.Close()
	w := pcapgo.NewWriter(out)
	ts.Check(w.WriteFileHeader(65536, layers.LinkTypeEthernet))
	at := time.Unix(0, 0)
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		message, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil || len(message) == 0 {
			continue // what it says about itself
		}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4zero, DstIP: net.IPv4bcast}
		udp := &layers.UDP{SrcPort: 68, DstPort: 67}
		ts.Check(udp.SetNetworkLayerForChecksum(ip))
		b := gopacket.NewSerializeBuffer()
		ts.Check(gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: message[28:34], DstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(message)))
		ts.Check(w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(b.Bytes()), Length: len(b.Bytes())}, b.Bytes()))
		at = at.Add(time.Second)
	}
}

// publisher signs as Flatcar's build machine does, and as somebody else.
type publisher struct {
	// mu is held while signing: scripts run in parallel, and the library's keys
	// remember what they have verified.
	mu                 sync.Mutex
	official, stranger *openpgp.Entity
	signedThen         time.Time
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	then := time.Date(2015, 3, 1, 0, 0, 0, 0, time.UTC)
	entity := func(name string) *openpgp.Entity {
		e, err := openpgp.NewEntity(name, "", name+"@example.org", keyConfig(then, 0))
		if err != nil {
			t.Fatal(err)
		}
		e.Subkeys = nil // the encryption subkey
		for _, c := range []*packet.Config{keyConfig(then, 365*24*3600), keyConfig(time.Now().Add(-time.Hour), 0)} {
			if err := e.AddSigningSubkey(c); err != nil {
				t.Fatal(err)
			}
		}
		return e
	}
	return &publisher{official: entity("official"), stranger: entity("stranger"), signedThen: then.AddDate(0, 6, 0)}
}

func keyConfig(at time.Time, lifetime uint32) *packet.Config {
	return &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: lifetime, Time: func() time.Time { return at }}
}

func (p *publisher) release(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 3 {
		ts.Fatalf("usage: release current|expired|stranger [IMAGE [KERNEL]]")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	signer, at := p.official, time.Now()
	switch args[0] {
	case "current":
	case "expired":
		at = p.signedThen
	case "stranger":
		signer = p.stranger
	default:
		ts.Fatalf("unknown signer %q", args[0])
	}
	dir := ts.MkAbs("mirror/amd64-usr/4593.2.5")
	ts.Check(os.MkdirAll(dir, 0o755))
	for _, name := range []string{"flatcar_production_image.bin.bz2", "flatcar_production_pxe.vmlinuz", "flatcar_production_pxe_image.cpio.gz"} {
		content := []byte(strings.Repeat(name, 100))
		if len(args) > 1 && strings.HasSuffix(name, ".bin.bz2") {
			content = []byte(ts.ReadFile(args[1]))
		} else if len(args) > 2 && strings.HasSuffix(name, ".vmlinuz") {
			content = []byte(ts.ReadFile(args[2]))
		}
		var sig bytes.Buffer
		ts.Check(openpgp.DetachSign(&sig, []*openpgp.Entity{signer}, bytes.NewReader(content), keyConfig(at, 0)))
		ts.Check(os.WriteFile(filepath.Join(dir, name), content, 0o644))
		ts.Check(os.WriteFile(filepath.Join(dir, name+".sig"), sig.Bytes(), 0o644))
	}
	var ring bytes.Buffer
	w, err := armor.Encode(&ring, openpgp.PublicKeyType, nil)
	ts.Check(err)
	ts.Check(p.official.Serialize(w))
	ts.Check(w.Close())
	ts.Check(os.MkdirAll(ts.MkAbs("keys"), 0o755))
	ts.Check(os.WriteFile(ts.MkAbs("keys/flatcar.asc"), ring.Bytes(), 0o644))
	spec := []byte(strings.ReplaceAll(ts.ReadFile("cluster.yaml"), "FINGERPRINT", fmt.Sprintf("%X", p.official.PrimaryKey.Fingerprint)))
	ts.Check(os.WriteFile(ts.MkAbs("cluster.yaml"), spec, 0o644))
}

func change(ts *testscript.TestScript, args []string, f func([]byte) []byte) {
	if len(args) != 1 {
		ts.Fatalf("usage: COMMAND FILE")
	}
	b := []byte(ts.ReadFile(args[0]))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), f(b), 0o644))
}
