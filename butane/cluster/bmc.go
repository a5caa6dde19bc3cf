package cluster

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// BMC is a machine's management controller.
type BMC struct {
	// Kind is redfish or ipmi.
	Kind string
	// Address is a host or host:port.
	Address  string
	Username string
	Password Secret
	// Pin is the SHA-256 digest of its certificate, 64 hexadecimal digits in lower
	// case; CA is a path to authorities; Insecure is the reason why it is trusted
	// without either. Exactly one is set for redfish, none for ipmi.
	Pin, CA, Insecure string
	// System is the id of the Redfish system; empty where there is only one.
	System string
	// Boot is pxe, http or iso: what it is started from to be installed.
	Boot string
	// BIOS says that the machine does not boot by UEFI.
	BIOS bool
}

// Secret says where a secret is; exactly one is set. Paths start where those of
// sources do.
type Secret struct {
	File, Env, Age string
}

// bmc returns nil for a machine without one.
func (c *checker) bmc(raw rawBMC) *BMC {
	if raw.place.Path == "" {
		return nil
	}
	b := &BMC{
		Kind:     c.choice(raw.Kind, "redfish", []string{"redfish", "ipmi"}, nil),
		Address:  c.bmcAddress(raw.Address),
		Username: raw.Username.V,
		Password: c.secret(raw.Password),
		Insecure: strings.TrimSpace(raw.TLS.Insecure.V),
		System:   raw.System.V,
		Boot:     c.choice(raw.Boot, "pxe", []string{"pxe", "http", "iso"}, nil),
		BIOS:     c.choice(raw.Firmware, "uefi", []string{"uefi", "bios"}, nil) == "bios",
	}
	if raw.Username.Set && (b.Username == "" || b.Kind == "ipmi" && len(b.Username) > 16) {
		c.add(raw.Username.Pos, raw.Username.Path, "", "%q is no user name that a BMC has: want 1 to 16 characters", b.Username)
	}
	if raw.Boot.Set && b.Boot == "http" && (b.BIOS || b.Kind == "ipmi") {
		c.add(raw.Boot.Pos, raw.Boot.Path, "boot: pxe", "http is for redfish with UEFI firmware")
	}
	if raw.Boot.Set && b.Boot == "iso" && b.Kind == "ipmi" {
		c.add(raw.Boot.Pos, raw.Boot.Path, "boot: pxe", "iso is for redfish: IPMI knows no virtual media")
	}
	if b.Kind == "ipmi" {
		for _, f := range []place{raw.TLS.place, raw.System.place} {
			if f.Path != "" {
				c.add(f.Pos, f.Path, "remove it", "is for redfish, and this BMC is spoken to by ipmi")
			}
		}
		return b
	}
	c.bmcTrust(raw, b)
	return b
}

// bmcTrust: nothing is trusted because nobody said anything.
func (c *checker) bmcTrust(raw rawBMC, b *BMC) {
	const hint = "tls:\n  pin: sha256:…   # openssl s_client -connect ADDRESS:443 </dev/null | openssl x509 -noout -fingerprint -sha256"
	set := 0
	for _, f := range []rawString{raw.TLS.Pin, raw.TLS.CA, raw.TLS.Insecure} {
		if f.Path != "" {
			set++
		}
	}
	switch {
	case raw.TLS.place.Path == "" && raw.Kind.Set && !c.reported(raw.Kind.Path):
		c.add(raw.Pos, raw.place.Path, hint, "required key %q is missing: say whose certificate is trusted", "tls")
	case raw.TLS.place.Path != "" && set != 1 && !c.reported(raw.TLS.place.Path):
		c.add(raw.TLS.Pos, raw.TLS.place.Path, hint, "want exactly one of pin, ca, insecure")
	}
	if f := raw.TLS.Pin; f.Set {
		pin := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(f.V, "sha256:"), ":", ""))
		if d, err := hex.DecodeString(pin); err != nil || len(d) != 32 {
			c.add(f.Pos, f.Path, hint, "%q is not the SHA-256 digest of a certificate: want 64 hexadecimal digits", f.V)
		} else {
			b.Pin = pin
		}
	}
	if f := raw.TLS.CA; f.Set {
		b.CA = c.path(f)
	}
	if f := raw.TLS.Insecure; f.Set {
		if len(b.Insecure) < 10 {
			c.add(f.Pos, f.Path, "insecure: the reason, in a few words", "%q is no reason", f.V)
		} else {
			c.warn(f.place, "pin its certificate", "any certificate is accepted: whoever is on the way to this BMC gets its password (%s)", b.Insecure)
		}
	}
}

// bmcAddress checks host or host:port.
func (c *checker) bmcAddress(f rawString) string {
	if !f.Set {
		return ""
	}
	host := f.V
	ok := true
	if h, p, err := net.SplitHostPort(f.V); err == nil {
		n, err := strconv.Atoi(p)
		host, ok = h, err == nil && n > 0 && n < 65536
	}
	if _, err := netip.ParseAddr(host); !ok || err != nil && !isHostname(host) {
		c.add(f.Pos, f.Path, "such as 10.9.0.11", "%q is not a host or host:port, without https://", f.V)
	}
	return f.V
}

// secret is where a secret is.
func (c *checker) secret(raw rawSecret) Secret {
	var s Secret
	if raw.File.Set {
		s.File = c.path(raw.File)
	}
	if raw.Age.Set {
		s.Age = c.path(raw.Age)
	}
	if f := raw.Env; f.Set {
		if f.V == "" || strings.ContainsAny(f.V, "= ") {
			c.add(f.Pos, f.Path, "env: BMC_PASSWORD", "%q is not the name of an environment variable", f.V)
		}
		s.Env = f.V
	}
	return s
}
