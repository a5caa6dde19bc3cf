package release

import (
	"bytes"
	"testing"
)

// FuzzDigests reads a file of digests without looking at who signed it.
func FuzzDigests(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		text, signature, err := splitClearSigned(b)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) || len(text) > len(b)+bytes.Count(b, []byte("\n")) {
			t.Errorf("took %q for the signed part of %q", text, b)
		}
		_, _, _ = parseSignatures(signature)
		checkSums(t, text)
	})
}

func FuzzParseSums(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) { checkSums(t, b) })
}

// checkSums looks for entries that the text does not have.
func checkSums(t *testing.T, text []byte) {
	sums, err := ParseSums(text)
	if err != nil {
		return
	}
	for name, digest := range sums {
		if len(digest) != 128 || !bytes.Contains(text, []byte(digest+"  "+name)) {
			t.Errorf("found %s %s, which %q does not have", name, digest, text)
		}
	}
}
