package enrol

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"
)

// Reason codes about tokens.
const (
	CodeToken          = "enrol-token"
	CodeTokenPolicy    = "token-not-allowed"
	CodeTokenMalformed = "token-malformed"
	CodeTokenForeign   = "token-foreign"
	CodeTokenUnknown   = "token-unknown"
	CodeTokenExpired   = "token-expired"
	CodeTokenReused    = "token-reused"
	CodeTokenReplayed  = "token-replayed"
)

// tokenDomain keeps the hash of a token apart from every other one.
const tokenDomain = "imagectl enrolment token v1\n"

// tokenBytes of randomness are in a token: nobody guesses one, so attempts need no
// count.
const tokenBytes = 32

// Token is what is known about the token that was made last for a machine. The
// secret itself is not kept.
type Token struct {
	// Digest is TokenDigest of the secret.
	Digest   string
	NotAfter time.Time
	// UsedBy is the fingerprint of the key that it let in, and UsedAt when; empty for
	// a token that nobody has used.
	UsedBy string
	UsedAt time.Time
	// Replace: it may replace an approved key.
	Replace bool
}

// NewToken makes the secret of a machine: NAME.RANDOM.
func NewToken(machine string, rand io.Reader) (string, error) {
	b := make([]byte, tokenBytes)
	if _, err := io.ReadFull(rand, b); err != nil {
		return "", fmt.Errorf("making a token for %s: reading randomness: %w", machine, err)
	}
	return machine + "." + base64.RawURLEncoding.EncodeToString(b), nil
}

// TokenDigest is what is kept of a token.
func TokenDigest(token string) string {
	sum := sha256.Sum256([]byte(tokenDomain + token))
	return hex.EncodeToString(sum[:])
}

// DecideToken is Decide for a key that brings a token; an empty token is none. A
// token that is refused takes nothing away: an operator can still compare the code.
func DecideToken(r Record, fingerprint, token string, now time.Time) Decision {
	d := Decide(r, fingerprint)
	// An approved key needs no token: its reply was lost, or it comes back.
	if token == "" || d.Status != Pending || !r.Known {
		return d
	}
	refusal := r.refuseToken(fingerprint, token, now)
	if refusal == nil {
		return Decision{Status: Approved, Code: CodeToken, Burn: true, Reason: fmt.Sprintf("approved as %s by its token", r.Name)}
	}
	d.Code = refusal.Code
	d.Reason = fmt.Sprintf("%s; an operator can still compare the code: imagectl machines approve %s", refusal.Reason, r.Name)
	if r.Approved != "" {
		d.Reason += " --replace-key"
	}
	return d
}

// refuseToken says why a token is not taken, or nil.
func (r Record) refuseToken(fingerprint, token string, now time.Time) *Refusal {
	again := fmt.Sprintf("imagectl machines config --token %s makes another", r.Name)
	name, random, ok := strings.Cut(token, ".")
	if b, err := base64.RawURLEncoding.DecodeString(random); !ok || err != nil || len(b) != tokenBytes {
		return &Refusal{CodeTokenMalformed, "what this machine was given is no token; " + again}
	}
	switch {
	case !r.Tokens:
		return &Refusal{CodeTokenPolicy, "cluster.yaml takes no tokens: identity.policy is approve"}
	case name != r.Name:
		return &Refusal{CodeTokenForeign, fmt.Sprintf("the token is for %s, and by its hardware this machine is %s; %s", printable(name), r.Name, again)}
	case r.Token == nil || subtle.ConstantTimeCompare([]byte(r.Token.Digest), []byte(TokenDigest(token))) != 1:
		return &Refusal{CodeTokenUnknown, fmt.Sprintf("there is no such token for %s, or a newer one took its place; %s", r.Name, again)}
	case r.Token.UsedBy == fingerprint:
		return &Refusal{CodeTokenReplayed, fmt.Sprintf("this key used the token at %s and was replaced or withdrawn since; %s", clock(r.Token.UsedAt), again)}
	case r.Token.UsedBy != "":
		return &Refusal{CodeTokenReused, fmt.Sprintf("another key used the token at %s; if %s was not installed anew, somebody has copied it; %s", clock(r.Token.UsedAt), r.Name, again)}
	case now.After(r.Token.NotAfter):
		return &Refusal{CodeTokenExpired, fmt.Sprintf("the token for %s expired at %s; %s", r.Name, clock(r.Token.NotAfter), again)}
	case r.Approved != "" && !r.Token.Replace:
		return &Refusal{CodeNeedsReplace, fmt.Sprintf("%s has an approved key already, which the token may not replace; imagectl machines config --token %s --replace-key makes one that may", r.Name, r.Name)}
	}
	return nil
}

func clock(t time.Time) string { return t.UTC().Format(time.DateTime + " MST") }

// printable bounds what a stranger makes us say.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '?'
	}, s)
	return s[:min(len(s), 63)]
}
