package platform

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"gopkg.in/yaml.v3"
)

// guestinfo reads VMware's variables: metadata as cloud-init has it
// (cloudinit/sources/DataSourceVMware.py), or, where there is none, interface.N and dns as
// Flatcar's coreos-cloudinit has them (Documentation/vmware-guestinfo.md).
func guestinfo(ctx context.Context, m Machine) (Network, error) {
	vars, err := m.Guestinfo(ctx)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("guestinfo: %w", err)
		}
		return Network{}, err
	}
	text, err := decoded("guestinfo.metadata", vars["metadata"], vars["metadata.encoding"])
	if err != nil {
		return Network{}, err
	}
	n, err := guestMetadata(text)
	name := n.Hostname
	if errors.Is(err, fs.ErrNotExist) {
		n, err = guestVariables(vars)
	}
	n.Hostname = cmp.Or(name, hostname(vars["hostname"]))
	if errors.Is(err, fs.ErrNotExist) && n.Hostname != "" {
		n.From, err = "guestinfo", nil
	}
	return n, err
}

// guestConfig takes node.json out of the variable, or out of the OVF environment that VMware
// gives by this way too. Without both found is false.
func guestConfig(ctx context.Context, m Machine) (b []byte, found bool, err error) {
	vars, err := m.Guestinfo(ctx)
	if err != nil {
		return nil, !errors.Is(err, fs.ErrNotExist), err
	}
	if v := vars["imagectl.node"]; strings.TrimSpace(v) != "" {
		return []byte(v), true, nil
	}
	if v := vars["ovfEnv"]; v != "" {
		b, err = property([]byte(v), Property)
		return b, true, err
	}
	return nil, false, nil
}

// guestMetadata is for the cards and the name of cloud-init's metadata. Without cards the error
// wraps fs.ErrNotExist.
func guestMetadata(text []byte) (Network, error) {
	const from = "guestinfo.metadata"
	a, err := names(from, text)
	if err != nil {
		return Network{}, err
	}
	n := Network{Hostname: a.name()}
	switch {
	case a.Network.IsZero() || a.Network.Tag == "!!null":
		return n, fmt.Errorf("%s says nothing of the network: %w", from, fs.ErrNotExist)
	case a.Network.Kind == yaml.ScalarNode:
		var text []byte
		if text, err = decoded(from+" network", a.Network.Value, a.Encoding); err != nil {
			return n, err
		}
		n, err = netConfig(from, text)
	default:
		n, err = netConfigOf(from, &a.Network)
	}
	n.Hostname = a.name()
	return n, err
}

// decoded is a value in the encodings that cloud-init knows. The value --- is what it writes
// over one that is to be forgotten.
func decoded(key, value, encoding string) ([]byte, error) {
	if v := strings.TrimSpace(value); v == "" || v == "---" {
		return nil, nil
	}
	text := []byte(value)
	var zipped bool
	switch strings.TrimSpace(encoding) {
	case "":
		return bounded(key, text)
	case "base64", "b64":
	case "gzip+base64", "gz+b64":
		zipped = true
	default:
		return nil, fmt.Errorf("%s: its encoding %.60q is none that is read: want base64 or gzip+base64", key, encoding)
	}
	text, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(value), ""))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if zipped {
		z, err := gzip.NewReader(bytes.NewReader(text))
		if err == nil {
			text, err = io.ReadAll(io.LimitReader(z, maxDescription+1))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	return bounded(key, text)
}

func bounded(key string, text []byte) ([]byte, error) {
	if len(text) > maxDescription {
		return nil, fmt.Errorf("%s: it has more than %d bytes", key, maxDescription)
	}
	return text, nil
}

// guestVariables understands interface.N.… and dns.…, each of which is counted from 0 without
// a gap.
func guestVariables(vars map[string]string) (Network, error) {
	var s sheet
	get := func(format string, a ...any) string { return strings.TrimSpace(vars[fmt.Sprintf(format, a...)]) }
	for i := 0; get("dns.server.%d", i) != ""; i++ {
		a, err := resolver(fmt.Sprintf("dns.server.%d", i), get("dns.server.%d", i))
		if s.complain(err); err == nil {
			s.dns = append(s.dns, a)
		}
	}
	for i := 0; get("dns.domain.%d", i) != ""; i++ {
		err := domain(fmt.Sprintf("dns.domain.%d", i), get("dns.domain.%d", i))
		if s.complain(err); err == nil {
			s.search = append(s.search, get("dns.domain.%d", i))
		}
	}
	i := 0
	for ; guestCard(get, i); i++ {
		c, err := guestInterface(get, i)
		s.add(fmt.Sprintf("interface.%d", i), c, err)
	}
	if i == 0 {
		return Network{}, fmt.Errorf("guestinfo says nothing of network cards: %w", fs.ErrNotExist)
	}
	return s.network("guestinfo")
}

// guestCard says whether there is a card of that number.
func guestCard(get func(string, ...any) string, i int) bool {
	for _, k := range []string{"name", "mac", "dhcp", "ip.0.address", "route.0.gateway", "route.0.destination"} {
		if get("interface.%d.%s", i, k) != "" {
			return true
		}
	}
	return false
}

func guestInterface(get func(string, ...any) string, i int) (Card, error) {
	c := Card{Name: fmt.Sprintf("interface%d", i), Device: get("interface.%d.name", i)}
	if mac := get("interface.%d.mac", i); mac != "" {
		var err error
		if c.MAC, err = macOf("mac", mac); err != nil {
			return c, err
		}
		c.Device = ""
	}
	switch dhcp := get("interface.%d.dhcp", i); dhcp {
	case "yes":
		c.Four, c.Six = DHCP, DHCP // networkd's DHCP=true, which coreos-cloudinit writes
	case "", "no":
	default:
		return c, fmt.Errorf("dhcp %.60q is neither yes nor no", dhcp)
	}
	for a := 0; get("interface.%d.ip.%d.address", i, a) != ""; a++ {
		text := get("interface.%d.ip.%d.address", i, a)
		if !strings.Contains(text, "/") {
			return c, fmt.Errorf("ip.%d.address %.60q has no length of its network behind a slash", a, text)
		}
		p, err := addressOf(fmt.Sprintf("ip.%d.address", a), text, "")
		if err != nil {
			return c, err
		}
		c.static(p)
	}
	for r := 0; ; r++ {
		via, to := get("interface.%d.route.%d.gateway", i, r), get("interface.%d.route.%d.destination", i, r)
		if via == "" && to == "" {
			return c, nil
		}
		one, err := routeOf(fmt.Sprintf("route.%d", r), to, "", via, 0)
		if err != nil {
			return c, err
		}
		c.Routes = append(c.Routes, one)
	}
}
