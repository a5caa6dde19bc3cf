package enrol

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"testing"
)

func TestCodeIsTheFirstSixtyBitsInCrockfordBase32(t *testing.T) {
	t.Parallel()
	ca := &x509.Certificate{RawSubjectPublicKeyInfo: []byte("ca")}
	// Derived a second way: the standard library's encoder over the same digest.
	caSum, nodeSum := sha256.Sum256([]byte("ca")), sha256.Sum256([]byte("node"))
	sum := sha256.Sum256([]byte("imagectl enrolment code v1\n" + string(caSum[:]) + string(nodeSum[:])))
	text := base32.NewEncoding(crockford).WithPadding(base32.NoPadding).EncodeToString(sum[:])[:12]
	want := text[:4] + "-" + text[4:8] + "-" + text[8:]
	got := Code(ca, []byte("node"))
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if other := Code(&x509.Certificate{RawSubjectPublicKeyInfo: []byte("another")}, []byte("node")); other == got {
		t.Errorf("another CA gives the same code %s", other)
	}
	if other := Code(ca, []byte("another")); other == got {
		t.Errorf("another key gives the same code %s", other)
	}
}

func TestNormalCode(t *testing.T) {
	t.Parallel()
	for typed, want := range map[string]string{
		"0123-4567-89AB":   "0123-4567-89AB",
		"o123 4567 89ab":   "0123-4567-89AB",
		"OI23L56789ab":     "0123-1567-89AB",
		"":                 "",
		"0123-4567-89AB-C": "0123-4567-89ABC",
	} {
		if got := NormalCode(typed); got != want {
			t.Errorf("NormalCode(%q): got %q, want %q", typed, got, want)
		}
	}
}
