package files

import (
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

func TestACopyIsOneOfTheServers(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	var cas []*pki.CA
	for range 2 {
		ca, err := pki.NewCA("imagectl", 24*time.Hour, 0, now, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cas = append(cas, ca)
	}
	const content = "ciphertext"
	good := Copy{Name: Name("demo", now), Size: int64(len(content)), SHA256: "4c1a24733d7c2a4a4e5a4d7cd7d8a5d5a4a6c2f5d2d1e5e5f5a5b5c5d5e5f5a5"}
	signed := func(by *pki.CA, domain, cluster string, change func(*Copy)) Copy {
		c := good
		var err error
		if c.Signature, err = by.Attest(domain, c.Statement(cluster)); err != nil {
			t.Fatal(err)
		}
		change(&c)
		return c
	}
	as := func(*Copy) {}
	for what, c := range map[string]struct {
		copy Copy
		want string
	}{
		"the server's":         {signed(cas[0], Domain, "demo", as), ""},
		"another CA's":         {signed(cas[1], Domain, "demo", as), "the signature is not by imagectl"},
		"of another domain":    {signed(cas[0], "imagectl audit head v1", "demo", as), "the signature is not by imagectl"},
		"for another cluster":  {signed(cas[0], Domain, "prod", as), "the signature is not by imagectl"},
		"of another cluster":   {signed(cas[0], Domain, "demo", func(c *Copy) { c.Name = Name("prod", now) }), "is no backup of cluster demo"},
		"with another name":    {signed(cas[0], Domain, "demo", func(c *Copy) { c.Name = Name("demo", now.Add(time.Hour)) }), "the signature is not by imagectl"},
		"with another size":    {signed(cas[0], Domain, "demo", func(c *Copy) { c.Size++ }), "the signature is not by imagectl"},
		"with another content": {signed(cas[0], Domain, "demo", func(c *Copy) { c.SHA256 = strings.Repeat("0", 64) }), "the signature is not by imagectl"},
		"out of its directory": {signed(cas[0], Domain, "demo", func(c *Copy) { c.Name = "../" + c.Name }), "is no backup of cluster demo"},
		"too long":             {signed(cas[0], Domain, "demo", func(c *Copy) { c.Size = MaxCopy + 1 }), "nodes keep up to 134217728"},
		"empty":                {signed(cas[0], Domain, "demo", func(c *Copy) { c.Size = 0 }), "has 0 bytes"},
	} {
		f, err := c.copy.Check([]*x509.Certificate{cas[0].Certificate()}, "demo")
		switch {
		case c.want == "" && (err != nil || f.Name != good.Name || !f.At.Equal(now)):
			t.Errorf("%s: %+v, %v", what, f, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %s", what, err, c.want)
		}
	}
}

func TestTheContentOfACopy(t *testing.T) {
	t.Parallel()
	c := Copy{Name: "x", Size: 3, SHA256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"} // FIPS 180-2, appendix B.1
	for content, good := range map[string]bool{"abc": true, "abd": false, "ab": false, "abcd": false, "": false} {
		if err := c.CheckContent(strings.NewReader(content)); good != (err == nil) {
			t.Errorf("%q: %v", content, err)
		}
	}
}
