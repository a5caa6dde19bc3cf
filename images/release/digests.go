package release

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/imagectl/imagectl/images/lock"
)

// maxDigests bounds a file of digests, in bytes; Flatcar's have about 1,000.
const maxDigests = 256 << 10

// VerifyDigests checks a clear-signed file of digests, Flatcar's FILE.DIGESTS.asc,
// by the rules of [Key.Verify], and returns what it lists. A file with anything
// outside its signed part is refused: nobody signed that, and a reader may take it
// for a part of it.
func (k Key) VerifyDigests(clearSigned []byte, now time.Time) (Sums, lock.Signer, error) {
	sums, signer, err := k.verifyDigests(clearSigned, now)
	if err != nil {
		return nil, lock.Signer{}, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return sums, signer, nil
}

func (k Key) verifyDigests(clearSigned []byte, now time.Time) (Sums, lock.Signer, error) {
	text, signature, err := splitClearSigned(clearSigned)
	if err != nil {
		return nil, lock.Signer{}, err
	}
	signer, err := k.verify(bytes.NewReader(text), signature, packet.SigTypeText, now)
	if err != nil {
		return nil, lock.Signer{}, err
	}
	sums, err := ParseSums(text)
	return sums, signer, err
}

// splitClearSigned returns the text that is signed, as it is signed, and the
// binary signatures over it: RFC 9580 section 7.
func splitClearSigned(b []byte) (text, signature []byte, err error) {
	const begin = "-----BEGIN PGP SIGNED MESSAGE-----"
	if len(b) > maxDigests {
		return nil, nil, fmt.Errorf("the file of digests has %d bytes, more than %d", len(b), maxDigests)
	}
	block, rest := clearsign.Decode(b)
	switch {
	case block == nil:
		return nil, nil, errors.New("the file of digests is no clear-signed text")
	case !bytes.HasPrefix(b, []byte(begin)):
		return nil, nil, errors.New("the file of digests has text before its signed part")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, nil, errors.New("the file of digests has text behind its signed part")
	}
	signature, err = io.ReadAll(io.LimitReader(block.ArmoredSignature.Body, maxSignature+1))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the signature: %w", err)
	}
	return block.Bytes, signature, nil
}

// Sums are lower-case hexadecimal SHA-512 digests by file name.
type Sums map[string]string

var (
	sumsHeading = regexp.MustCompile(`^# ([A-Z0-9]+) HASH$`)
	sumsLine    = regexp.MustCompile(`^([0-9a-f]+)  ([A-Za-z0-9._+-]+)$`)
)

// sumsLengths are how many hexadecimal digits a digest has.
func sumsLengths() map[string]int {
	return map[string]int{"MD5": 32, "SHA1": 40, "SHA256": 64, "SHA512": 128}
}

// ParseSums reads what Flatcar writes into FILE.DIGESTS: blocks of digests, each
// behind a heading such as "# SHA512 HASH". Digests of all kinds must have their
// form, but only SHA-512 counts. A file that names one file with two digests is
// refused, for then it would depend on the reader which of them holds.
func ParseSums(b []byte) (Sums, error) {
	kind := ""
	lengths := sumsLengths()
	seen := map[[2]string]string{}
	out := Sums{}
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" {
			continue
		}
		if m := sumsHeading.FindStringSubmatch(line); m != nil {
			if kind = m[1]; lengths[kind] == 0 {
				return nil, fmt.Errorf("reading digests: line %d announces digests of kind %s, known are %s", i+1, kind, strings.Join(slices.Sorted(maps.Keys(lengths)), ", "))
			}
			continue
		}
		m := sumsLine.FindStringSubmatch(line)
		switch {
		case m == nil || kind == "":
			return nil, fmt.Errorf("reading digests: line %d is neither a heading nor a digest, two spaces and a file name: %.80q", i+1, line)
		case len(m[1]) != lengths[kind]:
			return nil, fmt.Errorf("reading digests: line %d has %d digits, %s has %d", i+1, len(m[1]), kind, lengths[kind])
		}
		at := [2]string{kind, m[2]}
		if first, ok := seen[at]; ok && first != m[1] {
			return nil, fmt.Errorf("reading digests: line %d gives %s another %s than a line before it", i+1, m[2], kind)
		}
		seen[at] = m[1]
		if kind == "SHA512" {
			out[m[2]] = m[1]
		}
	}
	if len(out) == 0 {
		return nil, errors.New("reading digests: there is no SHA512 digest")
	}
	return out, nil
}

// Check reads content and compares it with the digest of a file.
func (s Sums) Check(name string, content io.Reader) error {
	want, ok := s[name]
	if !ok {
		return fmt.Errorf("%w: the signed digests are of %s, not of %s", ErrSignature, strings.Join(slices.Sorted(maps.Keys(s)), ", "), name)
	}
	h := sha512.New()
	if _, err := io.Copy(h, content); err != nil {
		return fmt.Errorf("reading the signed file: %w", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%w: the file is not what was signed: it was changed or cut off after that (its SHA512 is %.16s…, signed is %.16s…); nothing of it is used: try another mirror", ErrSignature, got, want)
	}
	return nil
}
