package dhcp6

import "testing"

// A line of the file is refused, or means what it means when it is written anew.
func FuzzLease(f *testing.F) {
	for _, s := range []string{`{"client":"52:54:00:00:00:01","iaid":1,"addr":"fd00::11","until":"2026-11-21T12:00:00Z"}`, `{"client":"x","iaid":4294967295,"addr":"::ffff:10.0.0.1"}`, `{"client":"","addr":"10.0.0.1"}`, "", "{"} {
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

// Nothing that a router says stops us, and only an advertisement is one.
func FuzzAdvertisement(f *testing.F) {
	f.Add([]byte{typeAdvertisement, 0, 0, 0, 64, managed, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{typeAdvertisement, 0, 0, 0, 64, other})
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, packet []byte) {
		flags, ok := advertised(packet)
		if ok != (len(packet) >= 16 && packet[0] == typeAdvertisement) {
			t.Fatalf("%x is an advertisement: %v", packet, ok)
		}
		if ok && judge(flags, true) != "" && judge(flags, false) == "" {
			t.Errorf("flags %08b let machines ask for addresses and not for options", flags)
		}
	})
}
