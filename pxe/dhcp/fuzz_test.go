package dhcp

import (
	"net/netip"
	"testing"
	"time"
)

// A line of the file is refused, or means what it means when it is written anew.
func FuzzLease(f *testing.F) {
	good, err := leases().Encode(Lease{MAC: node1, Addr: netip.MustParseAddr("10.0.0.11"), Machine: "node1", Until: time.Unix(0, 0), State: Declined})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{string(good), `{"mac":"52:54:00:00:00:01","addr":"10.0.0.12","until":"2026-11-21T12:00:00Z","from":0}`, `{"mac":"x","addr":"::1"}`, `{"mac":"00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01"}`, "", "{"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		l, err := leases().Decode(line)
		if err != nil {
			return
		}
		text, err := leases().Encode(l)
		if err != nil {
			return // a year that JSON has no form for
		}
		again, err := leases().Decode(text)
		if err != nil || !again.Until.Equal(l.Until) {
			t.Fatalf("%q becomes %q, %v", line, text, err)
		}
		if again.Until = l.Until; again != l {
			t.Errorf("%q becomes %q", line, text)
		}
	})
}
