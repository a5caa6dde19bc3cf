package tftp

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// What a transfer failed by says how far it came, and what to look for.
func TestWhyATransferFailed(t *testing.T) {
	t.Parallel()
	big := []string{"tsize", "0", "blksize", "1468"}
	for _, c := range []struct {
		name   string
		size   int
		fields []string
		// acks are the acknowledgements that come, the options' among them.
		acks int
		err  error
		want string
	}{
		{"the whole file", 100_000, nil, 0, nil, ""},
		{"the server stops", 100_000, nil, 0, errStopping, ""},
		{"quirk 29: UEFI has the size", 100_000, big, 0, &brokenOff{8, "User aborted the transfer"}, ""},
		{"quirk 29: a ROM has the size", 100_000, big, 0, &brokenOff{0, ""}, ""},
		{"quirk 34: the last block is never acknowledged", 1000, nil, 1, errSilent, ""},
		{"packets are lost now and then", 100_000, big, 9, errAnew, ""},
		{"it never says a word", 100_000, big, 0, errSilent,
			"stalled: a: the answer to its options was sent 11 times after 0 of 69 blocks of 1468 bytes, without an answer; it was switched off or reset, or a packet filter lets only port 69 through: transfers come from other UDP ports"},
		{"it never says a word to the first block", 100_000, nil, 0, errSilent,
			"stalled: a: block 1 of 512 bytes was sent 11 times after 0 of 196 blocks of 512 bytes, without an answer; it was switched off or reset, or a packet filter lets only port 69 through: transfers come from other UDP ports"},
		{"quirk 31: full packets do not arrive", 100_000, big, 1, errSilent,
			"stalled: a: block 1 of 1468 bytes was sent 11 times after 0 of 69 blocks of 1468 bytes, without an answer; its small packets arrive: where a tunnel or a VLAN makes them smaller than the server's MTU says, give it firmware: {quirks: [small-blocks]} in cluster.yaml (blocks of 1388 bytes), or the server's interface a smaller MTU"},
		{"quirk 31: and it asks again and again", 100_000, big, 1, errAnew,
			"stalled: a: block 1 of 1468 bytes was sent 11 times after 0 of 69 blocks of 1468 bytes, without an answer, and then it began again; its small packets arrive: where a tunnel or a VLAN makes them smaller than the server's MTU says, give it firmware: {quirks: [small-blocks]} in cluster.yaml (blocks of 1388 bytes), or the server's interface a smaller MTU"},
		{"quirk 31: it does not take blocks of its own size", 100_000, []string{"blksize", "1024"}, 1, errSilent,
			"stalled: a: block 1 of 1024 bytes was sent 11 times after 0 of 98 blocks of 1024 bytes, without an answer; its small packets arrive: it may not take blocks of this size; firmware: {quirks: [blksize-misunderstood]} in cluster.yaml makes them 512 bytes"},
		{"it went away", 100_000, big, 10, errSilent,
			"stalled: a: block 10 of 1468 bytes was sent 11 times after 9 of 69 blocks of 1468 bytes, without an answer; it stopped in the middle: it was reset, its link went down, or its firmware has no more memory; look at its screen"},
		{"its numbers begin again", 600_000, []string{"blksize", "8"}, 65_540, &brokenOff{3, "no memory"},
			`broken-off: a: its firmware gave up with TFTP error 3 (no room for it: "no memory") after 65539 of 75001 blocks of 8 bytes: look at its screen`},
		{"an error without words", 100_000, nil, 3, &brokenOff{77, ""},
			"broken-off: a: its firmware gave up with TFTP error 77 after 3 of 196 blocks of 512 bytes: look at its screen"},
		{"it goes on for ever", 100_000, nil, 3, errSlow,
			"stalled: a: after 3 of 196 blocks of 512 bytes in 16s it was cut off, for no program takes so long: look for packets that are lost on the way"},
		{"the disk fails", 100_000, nil, 3, errors.New("input/output error"),
			"file-missing: a: the server cannot read the file, see its log: input/output error"},
	} {
		x, _ := transferOf(t, c.size, c.fields...)
		for range c.acks {
			number := x.block
			if x.oack != nil {
				number = 0
			}
			if next, _, err := x.acknowledged(number); !next || err != nil {
				t.Fatalf("%s: %v, %v", c.name, next, err)
			}
		}
		for x.tick() != giveUp {
		}
		code, reason := x.why(c.err)
		got := code + ": " + reason
		if code == "" {
			got = reason
		}
		if got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got, c.want)
		}
	}
}

// Whoever asks why hears of it: a transfer that began and failed is a refusal.
func TestATransferThatFailsIsTold(t *testing.T) {
	t.Parallel()
	told := make(events, 16)
	refused := func(_ netip.Addr, code, _ string) { told <- code }
	s, client := lonely(t, Config{Files: map[string][]byte{"a": program(5000)}, Refused: refused})
	for _, c := range []struct {
		name string
		ends func(client netip.AddrPort)
		want string
	}{
		{"its client is silent", func(netip.AddrPort) {
			for s.lanes[0].busy() > 0 {
				s.lanes[0].tick()
			}
		}, CodeStalled},
		{"its client has no room", func(c netip.AddrPort) { answers(s.lanes[0], c, "\x00\x05\x00\x03disk full\x00") }, CodeBrokenOff},
		{"its client wanted the size", func(c netip.AddrPort) { answers(s.lanes[0], c, "\x00\x05\x00\x08enough\x00") }, ""},
	} {
		s.arrive(client.name, mustParse(t, read("a", "octet")))
		if s.lanes[0].busy() != 1 {
			t.Fatalf("%s: no transfer runs", c.name)
		}
		c.ends(client.name)
		if c.want != "" {
			told.expect(t, c.want)
		}
		if len(told) != 0 {
			t.Errorf("%s: told %s", c.name, <-told)
		}
	}
	// Serve's own: an error that comes by the network.
	at := serve(t, Config{Files: map[string][]byte{"a": program(5000)}, Refused: refused})
	_, conn, from := ask(t, at, read("a", "octet"))
	if _, err := conn.WriteToUDP([]byte("\x00\x05\x00\x02no\x00"), from); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-told:
		if got != CodeBrokenOff {
			t.Errorf("got %s", got)
		}
	case <-time.After(time.Minute):
		t.Error("nothing is told")
	}
}

func answers(l *lane, client netip.AddrPort, packet string) {
	in := datagram.New(64)
	in.Add(client, true, func(b []byte) []byte { return append(b, packet...) })
	l.take(in)
}
