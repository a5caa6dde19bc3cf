package syslog

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// packets are what the named programs send.
func packets() []struct {
	name, packet string
	want         Message
} {
	return []struct {
		name, packet string
		want         Message
	}{
		// net/udp/syslog.c: syslog_send.
		{"iPXE", "<6>cp1.example.org ipxe: net0: 52:54:00:00:00:01 using virtio-net", Message{6, "ipxe", []string{"net0: 52:54:00:00:00:01 using virtio-net"}}},
		{"iPXE without a name", "<6>ipxe: http://10.0.0.2/boot.ipxe... ok", Message{6, "ipxe", []string{"http://10.0.0.2/boot.ipxe... ok"}}},
		// RFC 5424 section 6.5, examples 1 to 4.
		{"RFC 5424, 1", "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \ufeff'su root' failed for lonvick on /dev/pts/8", Message{2, "su", []string{"'su root' failed for lonvick on /dev/pts/8"}}},
		{"RFC 5424, 2", "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.", Message{5, "myproc", []string{"%% It's time to make the do-nuts."}}},
		{"RFC 5424, 3", `<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"] ` + "\ufeffAn application event log entry...", Message{5, "evntslog", []string{"An application event log entry..."}}},
		{"RFC 5424, 4", `<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut="3"][examplePriority@32473 class="high \"]\""]`, Message{5, "evntslog", nil}},
		// RFC 3164 section 5.4, examples 1 to 3.
		{"RFC 3164, 1", "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8", Message{2, "su", []string{"'su root' failed for lonvick on /dev/pts/8"}}},
		{"RFC 3164, 2", "Use the BFG!", Message{-1, "", []string{"Use the BFG!"}}},
		{"RFC 3164, 3", "<165>Aug 24 05:34:00 CST 1987 mymachine myproc[10]: %% It's time to make the do-nuts.", Message{5, "", []string{"Aug 24 05:34:00 CST 1987 mymachine myproc[10]: %% It's time to make the do-nuts."}}},
		{"busybox", "<13>Nov 21 12:00:00 root: hello", Message{5, "root", []string{"hello"}}},
		{"logger -n without a time", "<13>dracut-initqueue[402]: Timeout, still waiting", Message{5, "dracut-initqueue", []string{"Timeout, still waiting"}}},
		// Documentation/networking/netconsole.rst.
		{"netconsole", "[    1.234567] virtio_net virtio0 eth0: link up\n[    1.3] next\n", Message{-1, "", []string{"[    1.234567] virtio_net virtio0 eth0: link up", "[    1.3] next"}}},
		{"extended netconsole", "6,444,501151268,-;netconsole: network logging started\n SUBSYSTEM=net\n", Message{6, "kernel", []string{"netconsole: network logging started", "SUBSYSTEM=net"}}},
		{"somebody who draws on the terminal", "<14>x: \x1b[2J\x07red\u202egreen\x00\xff", Message{6, "x", []string{"[2Jredgreen", "?"}}},
		{"no priority", "<999>text", Message{-1, "", []string{"<999>text"}}},
		{"nothing", "", Message{-1, "", nil}},
	}
}

func TestPackets(t *testing.T) {
	t.Parallel()
	for _, c := range packets() {
		if d := cmp.Diff(c.want, Parse([]byte(c.packet))); d != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range packets() {
		f.Add([]byte(c.packet))
	}
	f.Add([]byte("<0>1 a b c d e [" + strings.Repeat(`\`, 100)))
	f.Fuzz(func(t *testing.T, packet []byte) {
		m := Parse(packet)
		if m.Severity < -1 || m.Severity > 7 || len(m.Lines) > maxLines {
			t.Errorf("%q: %+v", packet, m)
		}
		for _, s := range append(m.Lines, m.App) {
			if len(s) > maxText+len("…") || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
				t.Errorf("%q: %q", packet, s)
			}
		}
	})
}

// count is a meter that remembers.
type count struct{ heard, dropped int }

func (c *count) Heard()   { c.heard++ }
func (c *count) Dropped() { c.dropped++ }

func TestWhoSaysTooMuchIsNotHeardForAWhile(t *testing.T) {
	t.Parallel()
	now, meter := time.Unix(0, 0), &count{}
	var tails Tails
	r := newReceiver(Config{Meter: meter, Now: func() time.Time { return now }, Take: func(a netip.Addr, l Line) { tails.Add(a.String(), false, l) }})
	loud, quiet := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.8")
	for range burst + 50 {
		r.hear(loud, []byte("<14>x: noise"))
	}
	r.hear(quiet, []byte("<14>x: hello"))
	if meter.heard != burst+1 || meter.dropped != 50 {
		t.Errorf("heard %d, dropped %d", meter.heard, meter.dropped)
	}
	now = now.Add(time.Second)
	r.hear(loud, []byte("<14>x: back"))
	var got []string
	for _, l := range tails.Tail(2, loud.String()) {
		got = append(got, l.App+": "+l.Text)
	}
	if want := []string{"imagectl: 50 packets before this one were not kept: more than 100 a second", "x: back"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := tails.Tail(9, quiet.String(), "nobody"); len(got) != 1 || got[0].Text != "hello" {
		t.Errorf("got %v", got)
	}
}

// Source addresses are easily forged: neither those nor the machines fill the memory.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	var tails Tails
	r := newReceiver(Config{Now: func() time.Time { return now }, Take: func(a netip.Addr, l Line) { tails.Add(a.String(), false, l) }})
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for i := range 2 * maxSources {
		r.hear(at(i), []byte("x"))
	}
	if len(r.sources) != maxSources || len(tails.others) != maxTails {
		t.Errorf("%d sources, %d tails", len(r.sources), len(tails.others))
	}
	now = now.Add(sourceTime)
	r.hear(at(2*maxSources), []byte("new"))
	if got := tails.Tail(1, at(2*maxSources).String()); len(r.sources) != 1 || len(got) != 1 {
		t.Errorf("a minute later: %d sources, %v", len(r.sources), got)
	}
	for i := range 3 * tailLines {
		tails.Add("m", false, Line{At: now, Text: fmt.Sprint(i)})
	}
	if got := tails.Tail(1000, "m"); len(got) != tailLines || got[tailLines-1].Text != fmt.Sprint(3*tailLines-1) {
		t.Errorf("%d lines of one machine, the last is %v", len(got), got[len(got)-1])
	}
}

func TestLinesComeByUDP(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended, heard := make(chan error, 1), make(chan string, 1)
	go func() {
		ended <- Serve(ctx, conn, Config{Take: func(a netip.Addr, l Line) { heard <- a.String() + " " + l.App + " " + l.Text }})
	}()
	client, err := net.Dial("udp4", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("<6>cp1 ipxe: hello")); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "127.0.0.1 ipxe hello" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Anybody can send lines from addresses that he invents.
func TestListedMachinesAreKeptApart(t *testing.T) {
	t.Parallel()
	var tails Tails
	tails.Add("52:54:00:00:00:01", true, Line{At: time.Unix(0, 0), Text: "evidence"})
	for i := range 2 * maxTails {
		tails.Add(fmt.Sprint("10.0.0.", i), false, Line{At: time.Unix(int64(1+i), 0), Text: "noise"})
	}
	if got := tails.Tail(1, "52:54:00:00:00:01"); len(got) != 1 || got[0].Text != "evidence" {
		t.Errorf("got %v", got)
	}
	for i := range 2 * maxListed {
		tails.Add(fmt.Sprint("listed", i), true, Line{At: time.Unix(int64(1+i), 0)})
	}
	if len(tails.listed) != maxListed || len(tails.others) != maxTails {
		t.Errorf("%d listed, %d others", len(tails.listed), len(tails.others))
	}
}
