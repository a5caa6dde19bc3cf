package tftp

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// events is a meter that says what it is told.
type events chan string

func (e events) Begun() { e <- "begun" }
func (e events) Ended(file string, sent int64, whole bool) {
	e <- fmt.Sprintf("ended %s %d %v", file, sent, whole)
}

func (e events) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-e:
			if got != w {
				t.Fatalf("got %q, want %q", got, w)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nothing, want %q", w)
		}
	}
}

func TestTransfersAndRefusalsAreCounted(t *testing.T) {
	meter := make(events, 16)
	at := serve(t, Config{
		Files: map[string][]byte{"a": program(300)}, Sessions: 1, Meter: meter,
		Refused: func(_ netip.Addr, code, reason string) { meter <- code + ": " + reason },
		Waits:   func(_ netip.Addr, before int) { meter <- fmt.Sprintf("waits behind %d", before) },
		Loaded:  func(_ netip.Addr, name string) { meter <- "loaded " + name },
	})
	send := func(conn *net.UDPConn, text string, to *net.UDPAddr) {
		t.Helper()
		if _, err := conn.WriteToUDP([]byte(text), to); err != nil {
			t.Fatal(err)
		}
	}
	_, conn, from := ask(t, at, read("a", "octet"))
	meter.expect(t, "begun")
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	send(other, read("a", "octet"), at)
	meter.expect(t, "waits behind 0")
	send(conn, "\x00\x04\x00\x01", from) // the block has come
	meter.expect(t, "ended a 300 true", "loaded a", "begun")
	_, from = answer(t, other, time.Minute)
	send(other, "\x00\x04\x00\x01", from)
	meter.expect(t, "ended a 300 true", "loaded a")

	_, conn, from = ask(t, at, read("a", "octet", "tsize", "0"))
	meter.expect(t, "begun")
	send(conn, "\x00\x05\x00\x08enough\x00", from)
	meter.expect(t, "ended a 0 false")

	ask(t, at, read("no/such\x01file", "octet"))
	meter.expect(t, `no-such-file: there is no file "no/such?file" here; its firmware was given another name`)
}
