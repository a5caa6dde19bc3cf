package cluster

import (
	"encoding/pem"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Proxy is what containerd and kubelet ask the internet through; the zero value, that
// they ask it themselves.
type Proxy struct {
	// HTTP and HTTPS are URLs of proxies for http and https; empty for none.
	HTTP, HTTPS string
	// No are hosts, domains, addresses and networks that are asked directly, besides
	// those that are known.
	No []string
	// Username and Password are sent to both proxies; the user is empty for none.
	Username string
	Password Secret
}

// RegistryMirror is where images of a registry are asked for first.
type RegistryMirror struct {
	// Name is the registry's host, with its port if it is not 443.
	Name string
	// Endpoints are URLs, tried in order; the registry itself comes last.
	Endpoints []string
	// CA are PEM certificates that those of the endpoints may be issued by, besides the
	// system's; empty for none.
	CA []byte
	// Username and Password are sent to every endpoint; the user is empty for none.
	Username string
	Password Secret
}

func (c *checker) proxy(raw rawProxy) Proxy {
	p := Proxy{HTTP: c.proxyURL(raw.HTTP), HTTPS: c.proxyURL(raw.HTTPS), Username: raw.Username.V, Password: c.secret(raw.Password)}
	for _, n := range raw.No {
		if !n.Set {
			continue
		}
		host := strings.TrimPrefix(n.V, ".")
		if h, port, err := net.SplitHostPort(host); err == nil {
			if _, err := strconv.ParseUint(port, 10, 16); err == nil {
				host = h
			}
		}
		_, addrErr := netip.ParseAddr(host)
		_, prefixErr := netip.ParsePrefix(host)
		if addrErr != nil && prefixErr != nil && !isHostname(host) {
			c.once(n.place, "such as registry.example.org, .example.org or 10.0.0.0/8", "%q is no host, domain, address or network", n.V)
		}
		p.No = append(p.No, n.V)
	}
	if raw.Path != "" && !raw.HTTP.Set && !raw.HTTPS.Set && !c.reported(raw.Path) {
		c.once(raw.place, "https: http://proxy.example.org:3128", "names no proxy: want http, https or both")
	}
	switch password := raw.Password.Path != ""; {
	case password && !raw.Username.Set:
		c.once(raw.Password.place, "username: nodes", "a password without a username")
	case raw.Username.Set && !password:
		c.once(raw.Username.place, "password: {file: ../secrets/proxy}", "a username without a password")
	case password:
		for _, f := range []rawString{raw.HTTP, raw.HTTPS} {
			if strings.HasPrefix(f.V, "http://") && !c.warned(raw.Password.place) {
				c.warn(raw.Password.place, "a proxy by https://", "the password goes to %s unencrypted, so whoever is on the way there can read it", f.V)
			}
		}
	}
	if raw.Username.Set && (p.Username == "" || strings.Contains(p.Username, ":")) {
		c.once(raw.Username.place, "", "%q is no user name: want some text without a colon", p.Username) // RFC 7617 section 2
	}
	return p
}

// proxyURL checks what Go's net/http/httpproxy takes.
func (c *checker) proxyURL(f rawString) string {
	if f.Set {
		c.plainURL(f, "http://proxy.example.org:3128", false)
	}
	return f.V
}

// plainURL checks an http(s) URL without user, query and fragment.
func (c *checker) plainURL(f rawString, example string, path bool) (u *url.URL, ok bool) {
	u, err := url.Parse(f.V)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		c.once(f.place, example, "%q is not an http or https URL with a host", safeURL(f.V))
	case u.User != nil:
		c.once(f.place, "", "a URL here must not carry a user or a password: cluster.yaml is in git, and so is what this would end up in")
	case u.RawQuery != "" || u.Fragment != "" || !path && u.Path != "" && u.Path != "/":
		c.once(f.place, example, "%q has more than a scheme, a host and a port", f.V)
	case strings.ContainsAny(f.V, " \"'\\%$"):
		c.once(f.place, example, "%q has a character that a URL here must not have: blanks, quotes, \\, %% and $", f.V)
	case !validPort(u.Port()):
		c.once(f.place, example, "%q is not a port: want 1 to 65535", u.Port())
	default:
		return u, true
	}
	return nil, false
}

// safeURL is a text that is no URL, without what may be a password in it.
func safeURL(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return "...@" + s[i+1:]
	}
	return s
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return s == "" || err == nil && n > 0
}

func (c *checker) mirror(raw rawRegistryMirror) RegistryMirror {
	m := RegistryMirror{Name: raw.Name.V, Username: raw.Username.V, Password: c.secret(raw.Password)}
	if raw.Name.Set {
		host, port, err := net.SplitHostPort(m.Name)
		if err != nil {
			host, port = m.Name, ""
		}
		if _, err := netip.ParseAddr(host); !validPort(port) || err != nil && !isHostname(host) {
			c.once(raw.Name.place, "name: docker.io", "%q is not a registry's host or host:port", m.Name)
		}
	}
	plain := false
	seen := map[string]bool{}
	for _, e := range raw.Endpoints {
		if !e.Set {
			continue
		}
		u, ok := c.plainURL(e, "https://mirror.example.org", true)
		if !ok {
			continue
		}
		if u.Scheme == "http" {
			plain = true
			if raw.Password.Path == "" && !c.warned(e.place) {
				c.warn(e.place, "https://"+u.Host+u.Path, "whoever is on the way to %s decides which images nodes run: it is not encrypted", u.Host)
			}
		}
		at := strings.TrimSuffix(e.V, "/")
		if seen[at] {
			c.once(e.place, "remove one", "%s is there twice", at)
		}
		seen[at] = true
		m.Endpoints = append(m.Endpoints, at)
	}
	if raw.place.Path != "" && len(raw.Endpoints) == 0 && !c.reported(raw.place.Path) {
		c.once(raw.place, "endpoints: [https://mirror.example.org]", "a mirror without an endpoint")
	}
	switch password := raw.Password.Path != ""; {
	case password && !raw.Username.Set:
		c.once(raw.Password.place, "username: reader", "a password without a username")
	case raw.Username.Set && !password:
		c.once(raw.Username.place, "password: {file: ../secrets/mirror}", "a username without a password")
	case password && plain:
		c.once(raw.Password.place, "endpoints: [https://...]", "the password would go to an endpoint of http, which anybody on the way can read")
	}
	if raw.Username.Set && (m.Username == "" || strings.Contains(m.Username, ":")) {
		c.once(raw.Username.place, "", "%q is no user name: want some text without a colon", m.Username) // RFC 7617 section 2
	}
	if f := raw.CA; f.Set {
		m.CA = c.certificates(f)
	}
	return m
}

// warned says whether a place has a warning already.
func (c *checker) warned(at place) bool {
	for _, f := range *c.found {
		if f.Path == at.Path && f.Pos == at.Pos {
			return true
		}
	}
	return false
}

// certificates reads a file of PEM certificates.
func (c *checker) certificates(f rawString) []byte {
	text, err := c.read(c.locate(f))
	if err != nil {
		c.once(f.place, "the path starts at the directory of "+f.Pos.File, "the certificates cannot be read: %s", cause(err))
		return nil
	}
	var out []byte
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			c.once(f.place, "", "%s holds a PEM block of type %q; only CERTIFICATE may be there", f.V, block.Type)
			return nil
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	if len(out) == 0 {
		c.once(f.place, "", "%s holds no PEM certificate", f.V)
	}
	return out
}
