package selector

import (
	"strings"
	"testing"
)

func must(t *testing.T, of map[Field][]string) Selector {
	t.Helper()
	s, err := New(of)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type of = map[Field][]string

func TestWhoMatches(t *testing.T) {
	t.Parallel()
	m := Shown{MAC: "52:54:00:00:00:1a", UUID: "4c4c4544-0000-2010-8020-80c04f202020", Serial: "PF3ABC", Network: "10.1.2.1", CircuitID: "leaf-3a swp7", RemoteID: "0x0006deadbeef"}
	for _, c := range []struct {
		name string
		of   of
		want bool
	}{
		{"nothing is wanted", of{}, false},
		{"one MAC address", of{MAC: {"52:54:00:00:00:1A"}}, true},
		{"a set", of{MAC: {"52:54:00:00:00:01", "52:54:00:00:00:1a"}}, true},
		{"none of a set", of{MAC: {"52:54:00:00:00:01", "52:54:00:00:00:02"}}, false},
		{"the first of a span", of{MAC: {"52:54:00:00:00:1a-52:54:00:00:00:ff"}}, true},
		{"the last of a span", of{MAC: {"52:54:00:00:00:00 - 52:54:00:00:00:1a"}}, true},
		{"beside a span", of{MAC: {"52:54:00:00:00:1b-52:54:00:00:00:ff"}}, false},
		{"a regular expression is of the whole", of{Serial: {"/PF3/"}}, false},
		{"and may say what follows", of{Serial: {"/PF3[A-Z]+/"}}, true},
		{"alternatives are of the whole too", of{Serial: {"/x|PF3/"}}, false},
		{"a serial number", of{Serial: {"PF3ABC"}}, true},
		{"the beginning of one is another", of{Serial: {"PF3AB"}}, false},
		{"and so is what goes on", of{Serial: {"PF3ABCD"}}, false},
		{"letters of a serial number count", of{Serial: {"pf3abc"}}, false},
		{"those of a UUID do not", of{UUID: {"4C4C4544-0000-2010-8020-80C04F202020"}}, true},
		{"a network", of{Network: {"10.9.0.0/16", "10.1.2.0/24"}}, true},
		{"another network", of{Network: {"10.1.3.0/24"}}, false},
		{"a switch port", of{CircuitID: {"leaf-3a swp7"}, RemoteID: {"0x0006deadbeef"}}, true},
		{"all fields have to agree", of{CircuitID: {"leaf-3a swp7"}, Serial: {"other"}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := must(t, c.of).Match(m); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	if must(t, of{CircuitID: {"/.*/"}}).Match(Shown{MAC: "52:54:00:00:00:1a"}) {
		t.Error("who shows no circuit matches any circuit")
	}
}

func TestWhatIsNoPattern(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		field      Field
		text, want string
	}{
		{MAC, "52-54-00-00-00-01", `mac: "52-54-00-00-00-01" is not a MAC address with colons, a span of two (52:54:00:00:00:10-52:54:00:00:00:1f) or a /regular expression/`},
		{MAC, "52:54:00:00:00:02-52:54:00:00:00:01", "mac: the span 52:54:00:00:00:02-52:54:00:00:00:01 ends before it begins"},
		{Serial, "", "serial: an empty pattern matches nobody"},
		{Serial, "/(/", `serial: "/(/" is not a regular expression: error parsing regexp: missing closing ): ` + "`(`"},
		{Serial, "/a)|(b/", `serial: "/a)|(b/" is not a regular expression: error parsing regexp: unexpected ): ` + "`a)|(b`"},
		{Network, "10.1.2.3/24", `network: "10.1.2.3/24" is not an IPv4 network, such as 10.1.2.0/24`},
		{Network, "fd00::/64", `network: "fd00::/64" is not an IPv4 network, such as 10.1.2.0/24`},
		{CircuitID, strings.Repeat("x", 300), "circuitID: a pattern has at most 256 characters, not 300"},
	} {
		if _, err := New(of{c.field: {c.text}}); err == nil || err.Error() != c.want {
			t.Errorf("%s %q: got %v, want %s", c.field, c.text, err, c.want)
		}
	}
}

func TestWhetherTwoCanMatchOneMachine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		a, b of
		want Overlap
	}{
		{"two ports", of{CircuitID: {"1"}}, of{CircuitID: {"2"}}, Never},
		{"one port", of{CircuitID: {"1", "2"}}, of{CircuitID: {"2"}}, Possible},
		{"the same port of two switches", of{CircuitID: {"1"}, RemoteID: {"a"}}, of{CircuitID: {"1"}, RemoteID: {"b"}}, Never},
		{"spans apart", of{MAC: {"52:54:00:00:00:00-52:54:00:00:00:0f"}}, of{MAC: {"52:54:00:00:00:10"}}, Never},
		{"spans that touch", of{MAC: {"52:54:00:00:00:00-52:54:00:00:00:10"}}, of{MAC: {"52:54:00:00:00:10-52:54:00:00:00:20"}}, Possible},
		{"networks apart", of{Network: {"10.0.0.0/24"}}, of{Network: {"10.0.1.0/24"}}, Never},
		{"one network in another", of{Network: {"10.0.0.0/16"}}, of{Network: {"10.0.1.0/24"}}, Possible},
		{"nothing in common", of{CircuitID: {"1"}}, of{Serial: {"x"}}, Possible},
		{"two regular expressions", of{Serial: {"/a.*/"}}, of{Serial: {"/b.*/"}}, Perhaps},
		{"the same one", of{Serial: {"/a.*/"}}, of{Serial: {"/a.*/"}}, Possible},
		{"a regular expression and a text of it", of{Serial: {"/a.*/"}}, of{Serial: {"abc"}}, Possible},
		{"and one that is not", of{Serial: {"bc"}}, of{Serial: {"/a.*/"}}, Never},
		{"and one MAC address", of{MAC: {"/.*:01/"}}, of{MAC: {"52:54:00:00:00:02"}}, Never},
		{"and a span", of{MAC: {"/.*:01/"}}, of{MAC: {"52:54:00:00:00:02-52:54:00:00:00:03"}}, Perhaps},
		{"regular expressions on two ports", of{Serial: {"/a.*/"}, CircuitID: {"1"}}, of{Serial: {"/b.*/"}, CircuitID: {"2"}}, Never},
		{"nobody", of{}, of{Serial: {"x"}}, Never},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b := must(t, c.a), must(t, c.b)
			if got, back := a.Overlaps(b), b.Overlaps(a); got != c.want || back != c.want {
				t.Errorf("got %v and %v, want %v", got, back, c.want)
			}
		})
	}
}

func TestTextOfAnID(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{"leaf-3a swp7": "leaf-3a swp7", "\x00\x04\x00\x01": "0x00040001", "": ""} {
		if got := Text([]byte(id)); got != want {
			t.Errorf("%q: got %q, want %q", id, got, want)
		}
	}
}
