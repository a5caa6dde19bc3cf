package enrol

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Every way in which a token is not taken, word by word: this is what a machine's
// console shows.
func TestTokensThatAreRefused(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	token, err := NewToken("w1", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewToken("w1", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := NewToken("w2", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	record := func(change func(*Record)) Record {
		r := Record{Name: "w1", State: machine.Approved, Known: true, Tokens: true, Token: &Token{Digest: TokenDigest(token), NotAfter: now.Add(15 * time.Minute)}}
		if change != nil {
			change(&r)
		}
		return r
	}
	used := func(by, approved string) Record {
		return record(func(r *Record) {
			r.Approved, r.Token.UsedBy, r.Token.UsedAt = approved, by, now.Add(-time.Minute)
		})
	}
	const compare, orReplace = "; an operator can still compare the code: imagectl machines approve w1", " --replace-key"
	const again = "; imagectl machines config --token w1 makes another"
	for _, c := range []struct {
		name   string
		rec    Record
		token  string
		at     time.Time
		status Status
		code   string
		reason string
	}{
		{"a good one", record(nil), token, now, Approved, CodeToken, "approved as w1 by its token"},
		{"a good one in its last second", record(nil), token, now.Add(15 * time.Minute), Approved, CodeToken, "approved as w1 by its token"},
		{"none", record(nil), "", now, Pending, CodePending, "waiting for an operator to compare the code: imagectl machines approve w1"},
		{"the reply was lost", used("k", "k"), token, now, Approved, CodeApproved, "approved as w1"},
		{"the reply was lost, and time went by", used("k", "k"), token, now.Add(time.Hour), Approved, CodeApproved, "approved as w1"},
		{"reused by a second key", used("l", "l"), token, now, Pending, CodeTokenReused,
			"another key used the token at 2026-03-01 11:59:00 UTC; if w1 was not installed anew, somebody has copied it" + again + compare + orReplace},
		{"reused after the first key was withdrawn", used("l", ""), token, now, Pending, CodeTokenReused,
			"another key used the token at 2026-03-01 11:59:00 UTC; if w1 was not installed anew, somebody has copied it" + again + compare},
		{"replayed by a key that was replaced", used("k", "l"), token, now, Pending, CodeTokenReplayed,
			"this key used the token at 2026-03-01 11:59:00 UTC and was replaced or withdrawn since" + again + compare + orReplace},
		{"foreign", record(nil), stranger, now, Pending, CodeTokenForeign, "the token is for w2, and by its hardware this machine is w1" + again + compare},
		{"foreign, with a name to confuse the console", record(nil), "w2\x1b[2J" + stranger[2:], now, Pending, CodeTokenForeign, "the token is for w2??2?, and by its hardware this machine is w1" + again + compare},
		{"expired", record(nil), token, now.Add(15*time.Minute + time.Second), Pending, CodeTokenExpired, "the token for w1 expired at 2026-03-01 12:15:00 UTC" + again + compare},
		{"an older one", record(nil), other, now, Pending, CodeTokenUnknown, "there is no such token for w1, or a newer one took its place" + again + compare},
		{"none was made", record(func(r *Record) { r.Token = nil }), token, now, Pending, CodeTokenUnknown, "there is no such token for w1, or a newer one took its place" + again + compare},
		{"half of one", record(nil), token[:20], now, Pending, CodeTokenMalformed, "what this machine was given is no token" + again + compare},
		{"with something behind it", record(nil), token + "A", now, Pending, CodeTokenMalformed, "what this machine was given is no token" + again + compare},
		{"cluster.yaml takes none", record(func(r *Record) { r.Tokens = false }), token, now, Pending, CodeTokenPolicy, "cluster.yaml takes no tokens: identity.policy is approve" + compare},
		{"the machine has a key", record(func(r *Record) { r.Approved = "l" }), token, now, Pending, CodeNeedsReplace,
			"w1 has an approved key already, which the token may not replace; imagectl machines config --token w1 --replace-key makes one that may" + compare + orReplace},
		{"the machine has a key, which may be replaced", record(func(r *Record) { r.Approved, r.Token.Replace = "l", true }), token, now, Approved, CodeToken, "approved as w1 by its token"},
		{"a rejected key", record(func(r *Record) { r.Rejected = []string{"k"} }), token, now, Rejected, CodeRejected, "an operator rejected this key for w1"},
		{"a retired machine", record(func(r *Record) { r.State = machine.Retired }), token, now, Rejected, CodeRetired, "w1 was retired"},
		{"a machine that cluster.yaml does not list", record(func(r *Record) { r.Known = false }), token, now, Pending, CodeUnknownMachine,
			"cluster.yaml lists no such machine; it is on record as w1, nothing will be written to its disks"},
	} {
		d := DecideToken(c.rec, "k", c.token, c.at)
		if d.Status != c.status || d.Code != c.code || d.Reason != c.reason {
			t.Errorf("%s: got %v %s %q\nwant %v %s %q", c.name, d.Status, d.Code, d.Reason, c.status, c.code, c.reason)
		}
		if burn := c.code == CodeToken; d.Burn != burn || burn && (d.Remember || d.Conflict) {
			t.Errorf("%s: burn %v, remember %v, conflict %v", c.name, d.Burn, d.Remember, d.Conflict)
		}
		// A second key is remembered for an operator to see, and is an alarm.
		if c.code == CodeTokenReused && (!d.Remember || d.Conflict != (c.rec.Approved != "")) {
			t.Errorf("%s: remember %v, conflict %v", c.name, d.Remember, d.Conflict)
		}
	}
}

func TestTokensAreSecretsOfTheirOwn(t *testing.T) {
	t.Parallel()
	a, err := NewToken("w1", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewToken("w1", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(a, "w1.") || len(a) != len("w1.")+43 || a == b || TokenDigest(a) == TokenDigest(b) || strings.Contains(TokenDigest(a), a[3:]) {
		t.Errorf("tokens %s and %s", a, b)
	}
	if _, err := NewToken("w1", bytes.NewReader(nil)); err == nil {
		t.Error("a token without randomness")
	}
}

func FuzzDecideToken(f *testing.F) {
	f.Add("w1.AAAA")
	f.Add("...")
	f.Fuzz(func(t *testing.T, token string) {
		r := Record{Name: "w1", State: machine.Approved, Known: true, Tokens: true, Token: &Token{Digest: TokenDigest("w1.x")}}
		if d := DecideToken(r, "k", token, time.Time{}); d.Status == Approved || strings.ContainsAny(d.Reason, "\x1b\n") {
			t.Errorf("%q: %+v", token, d)
		}
	})
}
