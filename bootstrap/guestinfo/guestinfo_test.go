package guestinfo

import (
	"bytes"
	"errors"
	"maps"
	"testing"
)

func TestReadAsksForWhatThereIs(t *testing.T) {
	t.Parallel()
	have := map[string]string{
		"imagectl.node": "e30=", "ovfEnv": "<x/>", "metadata": "e30=", "metadata.encoding": "base64", "hostname": "w1",
		"dns.server.0": "10.0.0.1", "dns.server.1": "10.0.0.2", "dns.domain.0": "example.org",
		"interface.0.mac": "02:00:00:00:00:01", "interface.0.ip.0.address": "10.0.0.5/24", "interface.0.ip.1.address": "10.0.0.6/24",
		"interface.0.route.0.gateway": "10.0.0.1", "interface.0.route.0.destination": "0.0.0.0/0", "interface.0.route.1.destination": "10.8.0.0/16",
		"interface.1.dhcp": "yes", "interface.2.ip.0.address": "10.2.0.5/24",
	}
	all := maps.Clone(have)
	// Behind a gap, and of others: not asked for.
	for _, k := range []string{"dns.server.3", "interface.4.mac", "interface.0.ip.3.address", "userdata", "interface.0.role"} {
		all[k] = "x"
	}
	got, err := read(func() (getter, error) { return func(name string) (string, error) { return all[name], nil }, nil })
	if err != nil || !maps.Equal(got, have) {
		t.Errorf("got %v, %v\nwant %v", got, err, have)
	}
}

func TestReadEnds(t *testing.T) {
	t.Parallel()
	asked := 0
	got, err := read(func() (getter, error) {
		return func(string) (string, error) { asked++; return "x", nil }, nil
	})
	if err != nil || asked > 5+2*maxEach+maxCards*(3+3*maxEach) || len(got) != asked {
		t.Errorf("asked %d times and got %d, %v", asked, len(got), err)
	}
}

func TestReadSaysWhatFails(t *testing.T) {
	t.Parallel()
	asked := 0
	_, err := read(func() (getter, error) {
		return func(name string) (string, error) {
			asked++
			return "", errors.New("unable to send RPCI command")
		}, nil
	})
	if want := "reading guestinfo.imagectl.node: unable to send RPCI command"; err == nil || err.Error() != want || asked != 1 {
		t.Errorf("got %v after %d questions, want %s after one", err, asked, want)
	}
	denied := errors.New("denied")
	if _, err := read(func() (getter, error) { return nil, denied }); !errors.Is(err, denied) {
		t.Errorf("got %v, want %v", err, denied)
	}
}

// Wherever tests run is no VMware: that is found out without speaking to the port, which would
// end this program.
func TestPrintOutsideOfVMware(t *testing.T) {
	t.Parallel()
	get, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if get != nil {
		t.Skip("this is a machine of VMware")
	}
	var b bytes.Buffer
	if err := Print(&b); err != nil || b.String() != "{}\n" {
		t.Errorf("got %q, %v, want an empty object", b.String(), err)
	}
}
