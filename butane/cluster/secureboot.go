package cluster

import (
	"strings"

	"github.com/imagectl/imagectl/images/pkcs11"
	"github.com/imagectl/imagectl/images/secureboot"
)

// secureBoot reads the certificate, since what is built depends on it, and leaves
// the key to whoever signs.
func (c *checker) secureBoot(boot rawBoot) SecureBoot {
	raw := boot.SecureBoot
	out := SecureBoot{Key: c.signingKey(raw)}
	c.noAge(raw.PIN)
	out.PIN = c.secret(raw.PIN)
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

// signingKey is where a key is that is acted on: a file, or a token (PKCS #11).
func (c *checker) signingKey(raw rawSecureBoot) Secret {
	c.noAge(raw.Key)
	file := raw.Key.File
	token := file.Set && strings.HasPrefix(file.V, pkcs11.Scheme)
	switch {
	case token && raw.PIN.Path == "":
		c.add(raw.Pos, raw.Path, "pin: {env: NAME}", "a key in a token needs pin: where the PIN is")
	case !token && raw.PIN.Path != "":
		c.add(raw.PIN.Pos, raw.PIN.Path, "leave it out", "only a key in a token (pkcs11:…) has a PIN")
	}
	if !token {
		return c.secret(raw.Key)
	}
	if _, err := pkcs11.ParseURI(file.V); err != nil {
		c.add(file.Pos, file.Path, "pkcs11:token=prod;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so", "the URI of the key in a token cannot be used: %s", err)
	}
	return Secret{File: file.V}
}

func (c *checker) noAge(raw rawSecret) {
	if raw.Age.Set {
		c.add(raw.Age.Pos, raw.Age.Path, "file: PATH or env: NAME", "age is not supported yet here")
	}
}
