package cluster

import (
	"strings"

	"github.com/imagectl/imagectl/images/secureboot"
)

// secureBoot reads the certificate, since what is built depends on it, and leaves
// the key to whoever signs.
func (c *checker) secureBoot(boot rawBoot) SecureBoot {
	raw := boot.SecureBoot
	out := SecureBoot{Key: c.signingKey(raw.Key)}
	if raw.Path != "" && boot.ISO.Path == "" {
		c.add(raw.Pos, raw.Path, "iso: {stub: boot/linuxx64.efi.stub}", "there is nothing to sign: boot.iso names what UEFI starts")
	}
	if !raw.Certificate.Set {
		return out
	}
	c.path(raw.Certificate)
	const hint = "imagectl secureboot keys keys/secureboot makes one: keys/secureboot/db.crt"
	b, err := c.read(c.locate(raw.Certificate))
	if err != nil {
		c.add(raw.Certificate.Pos, raw.Certificate.Path, hint, "the certificate cannot be read: %s", cause(err))
		return out
	}
	cert, err := secureboot.ParseCertificate(b)
	if err != nil {
		c.add(raw.Certificate.Pos, raw.Certificate.Path, hint, "%s cannot be used: %s", raw.Certificate.V, err)
		return out
	}
	out.Certificate = cert.Raw
	return out
}

// signingKey is where a key is that is acted on.
func (c *checker) signingKey(raw rawSecret) Secret {
	if raw.Age.Set {
		c.add(raw.Age.Pos, raw.Age.Path, "file: PATH or env: NAME", "age is not supported yet here")
	}
	if raw.File.Set && strings.HasPrefix(raw.File.V, "pkcs11:") {
		c.add(raw.File.Pos, raw.File.Path, "leave secureBoot out and sign the result of imagectl build --format uki; docs/images.md says how", "keys in PKCS#11 tokens are not supported yet")
	}
	return c.secret(raw)
}
