package dhcp

import (
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/quirk"
)

// serveLate makes answers to node1 wait.
func serveLate(t *testing.T, delay string) *wire {
	t.Helper()
	quirks, err := quirk.Parse([]byte(`[{number: 1, name: slow, handled: matched, habit: h, answer: a, evidence: e,
		match: {mac: ["` + node1.String() + `"]}, effect: {delay: ` + delay + `}}]`))
	if err != nil {
		t.Fatal(err)
	}
	return serveConfig(t, Config{Address: us, Files: files, Source: source(), Store: &memStore{}, Quirks: quirks})
}

func answered(t *testing.T, conn *wire) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.FromBytes(<-conn.in)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLateAnswerHoldsUpNobodyElse(t *testing.T) {
	conn := serveLate(t, "1m")
	for _, m := range []*dhcpv4.DHCPv4{discover(node1, pxe(0)), discover(node2, pxe(0))} {
		if _, err := conn.WriteTo(m.ToBytes(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := MAC(answered(t, conn).ClientHWAddr); got != node2 {
		t.Errorf("the first answer is for %s, want %s", got, node2)
	}
	// The clean-up shows that the server does not wait for the other one.
}

func TestLateAnswerLeavesNoEarlierThanItsDelay(t *testing.T) {
	conn := serveLate(t, "30ms")
	start := time.Now()
	for _, m := range []*dhcpv4.DHCPv4{discover(node1, pxe(0)), request(node1, pxe(0), wants("10.0.0.11"), toServer("10.0.0.1"))} {
		if _, err := conn.WriteTo(m.ToBytes(), nil); err != nil {
			t.Fatal(err)
		}
		if got := MAC(answered(t, conn).ClientHWAddr); got != node1 {
			t.Errorf("got an answer for %s", got)
		}
	}
	if took := time.Since(start); took < 60*time.Millisecond {
		t.Errorf("two answers that wait for 30 ms each came within %s", took)
	}
}
