package quirk_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/quirk"
	bootserver "github.com/imagectl/imagectl/pxe/server"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata and the table in docs/netboot.md")

// A transcript is a file of blocks, parted by empty lines. Its first block says in
// comments where the packets are from. Then:
//
//	machine 52:54:00:00:00:01 node1 10.0.0.11 local [QUIRK…]   one of cluster.yaml
//	sessions N                                                TFTP transfers at a time
//	proxy                                                     another server gives addresses
//	https PORT                                                UEFI boots by HTTPS
//	grub                                                      nbp: grub
//	at 4s                                                     the time since the start
//	> dhcp, > dhcp 4011, > dhcp6, > tftp CLIENT, > http       what comes, and then
//	< …                                                       what is answered
//
// -update rewrites what is answered; its diff is to be read.
type transcript struct {
	blocks   [][]string
	machines map[string]boot.Answer
	sessions int
	tlsPort  int
	proxy    bool
	grub     bool
}

func read(path string) (transcript, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return transcript{}, err
	}
	t := transcript{machines: map[string]boot.Answer{}}
	for _, block := range strings.Split(strings.TrimSpace(string(b)), "\n\n") {
		lines := strings.Split(block, "\n")
		t.blocks = append(t.blocks, lines)
		for _, line := range lines {
			word := strings.Fields(line)
			switch {
			case strings.HasPrefix(line, "machine ") && len(word) >= 5:
				a := boot.Answer{Name: word[2], Action: boot.Action(word[4]), Code: word[4], Reason: "the transcript says " + word[4], LocalBoot: "exit", Quirks: word[5:]}
				if a.Address, err = netip.ParseAddr(word[3]); err != nil {
					return transcript{}, err
				}
				if a.Action == boot.Install {
					a.Kernel, a.Initrd, a.Args = kernelBlob, []boot.Blob{initrdBlob}, []string{"quiet"}
				}
				t.machines[word[1]] = a
			case line == "proxy":
				t.proxy = true
			case line == "grub":
				t.grub = true
			case strings.HasPrefix(line, "sessions "):
				_, err = fmt.Sscan(word[1], &t.sessions)
			case strings.HasPrefix(line, "https "):
				_, err = fmt.Sscan(word[1], &t.tlsPort)
			}
		}
		if err != nil {
			return transcript{}, err
		}
	}
	return t, nil
}

var (
	server   = netip.MustParseAddrPort("10.0.0.1:8080")
	programs = map[boot.Firmware]string{boot.UEFIx64: loaderBlob.Name}
	start    = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	network  = boot.Network{
		Subnets: []boot.Subnet{
			{Prefix: netip.MustParsePrefix("10.0.0.0/24"), First: netip.MustParseAddr("10.0.0.100"), Last: netip.MustParseAddr("10.0.0.109"), Lease: time.Hour},
			{Prefix: netip.MustParsePrefix("10.0.7.0/24"), First: netip.MustParseAddr("10.0.7.100"), Last: netip.MustParseAddr("10.0.7.109"), Lease: time.Hour},
		},
		Reserved: map[netip.Addr]string{},
	}
)

// decide is boot.Source's. LocalBoot is found as butane/cluster does it.
func (t transcript) decide(quirks quirk.Set) func(boot.Machine) boot.Answer {
	return func(m boot.Machine) boot.Answer {
		a, ok := t.machines[m.MAC.String()]
		if !ok {
			return boot.Answer{Action: boot.Local, Code: "unknown-machine", Reason: "the transcript does not name it", LocalBoot: "exit"}
		}
		if e, _ := quirks.Apply(quirk.Disk, quirk.Client{}, a.Quirks); e.LocalBoot != "" {
			a.LocalBoot = e.LocalBoot
		}
		if t.grub {
			a.Program = boot.GRUB
		}
		return a
	}
}

// play returns the transcript with what is really answered.
func (t transcript) play(tb testing.TB, quirks quirk.Set) ([][]string, error) {
	decide := t.decide(quirks)
	network := network
	network.Proxy = t.proxy
	replay := dhcp.NewReplay(dhcp.Env{Server: server.Addr(), Network: &network, Answer: decide, Quirks: quirks,
		Files: bootserver.BootFiles(server, bootserver.UEFIURL(server, t.tlsPort), programs, bootserver.Extras{})})
	replay6 := t.replay6(decide)
	now := start
	var files *tftpLab
	var out [][]string
	for i, block := range t.blocks {
		switch word := strings.Fields(block[0]); {
		case block[0][0] == '<':
			continue // put in anew below
		case word[0] == "at":
			d, err := time.ParseDuration(word[1])
			if err != nil {
				return nil, err
			}
			now = start.Add(d)
		}
		out = append(out, block)
		var answer [][]string
		var err error
		switch block[0] {
		case "> dhcp":
			answer, err = playDHCP(replay, now, 67, block[1:])
		case "> dhcp 4011":
			answer, err = playDHCP(replay, now, 4011, block[1:])
		case "> dhcp6":
			answer, err = playDHCP6(replay6, now, block[1:])
		case "> http":
			answer, err = playHTTP(decide, block[1:])
		default:
			if client, ok := strings.CutPrefix(block[0], "> tftp "); ok {
				if files == nil {
					files = newTFTPLab(tb, t, quirks)
				}
				answer, err = files.play(client, block[1:], t.answersAfter(i))
			}
		}
		if err != nil {
			return nil, fmt.Errorf("block %d, %s: %w", i+1, block[0], err)
		}
		out = append(out, answer...)
	}
	if files != nil && len(files.refused) > 0 {
		return nil, fmt.Errorf("the transcript says nothing of a refusal: %s", <-files.refused)
	}
	return out, nil
}

// answersAfter are the answers that the file has after a block.
func (t transcript) answersAfter(i int) [][]string {
	var out [][]string
	for _, b := range t.blocks[i+1:] {
		if b[0][0] != '<' {
			break
		}
		out = append(out, b)
	}
	return out
}

func playDHCP(r *dhcp.Replay, now time.Time, port uint16, lines []string) ([][]string, error) {
	packet, err := encodeDHCP(1, lines)
	if err != nil {
		return nil, err
	}
	_, d, err := r.Packet(now, netip.MustParseAddrPort("0.0.0.0:68"), netip.AddrPortFrom(server.Addr(), port), packet)
	if err != nil {
		return nil, err
	}
	note := "code " + d.Code
	if len(d.Quirks) > 0 {
		note += " quirks " + strings.Join(d.Quirks, ",")
	}
	if d.Delay > 0 {
		note += " after " + d.Delay.String()
	}
	if d.Reply == nil {
		return [][]string{{"< silence " + note, "# " + d.Reason}}, nil
	}
	b := d.Reply.ToBytes()
	answer := append([]string{fmt.Sprintf("< dhcp to %s %s", d.To, note)}, decodeDHCP(2, b)...)
	// What is judged is the text; so that this means every byte, it must lead back.
	if again, err := encodeDHCP(2, answer[1:]); err != nil || !bytes.Equal(again, b) {
		return nil, errors.Join(fmt.Errorf("the answer does not survive its own text: %x", b), err)
	}
	return [][]string{answer}, nil
}

func text(blocks [][]string) string {
	var s strings.Builder
	for i, b := range blocks {
		if i > 0 {
			s.WriteString("\n")
		}
		s.WriteString(strings.Join(b, "\n") + "\n")
	}
	return s.String()
}

func load(t *testing.T) quirk.Set {
	t.Helper()
	s, err := quirk.Load()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTranscriptsAreAnsweredAsWritten(t *testing.T) {
	quirks := load(t)
	for _, path := range transcripts(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			tr, err := read(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := tr.play(t, quirks)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(path, []byte(text(got)), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got, want := text(got), text(tr.blocks); got != want {
				t.Errorf("%s is answered differently (go test -update rewrites it):\n%s", path, got)
			}
		})
	}
}

// A rule that a transcript does not need is not shown by it.
func TestTranscriptsNeedTheirRule(t *testing.T) {
	quirks := load(t)
	for _, q := range quirks.All() {
		if q.Handled != quirk.Matched {
			continue
		}
		t.Run(q.Name, func(t *testing.T) {
			tr, err := read(file(q))
			if err != nil {
				t.Fatal(err)
			}
			got, err := tr.play(t, quirks.Without(q.Name))
			if err == nil && text(got) == text(tr.blocks) {
				t.Errorf("without the rule the answers are the same")
			}
		})
	}
}

func file(q quirk.Quirk) string {
	return filepath.Join("testdata", fmt.Sprintf("%02d-%s.txt", q.Number, q.Name))
}

func transcripts(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	return paths
}

func cardOf(name string) net.HardwareAddr {
	m, _ := net.ParseMAC(name)
	return m
}
