// Package audit is the log of who changed what: entries chained by hash, so that
// one which is altered, dropped or moved is noticed. It is pure: it seals entries
// and verifies a sequence of them; where they are kept is the caller's business,
// in the same transaction as the change that they record.
//
// What a chain cannot show is that its end was cut off, or all of it made anew. That shows
// who remembers an entry: Memory is for those who are shown the chain's head again and
// again.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"time"
)

// Actor is who did it.
type Actor struct {
	// Subject is the identity in a certificate (imagectl://CLUSTER/KIND/NAME), or
	// a key's fingerprint where there is no certificate yet.
	Subject string `json:"subject"`
	// Serial is the certificate's serial number, hexadecimal; empty without one.
	Serial string `json:"serial,omitempty"`
	// Source is the network address that the request came from.
	Source string `json:"source,omitempty"`
}

// Entry is one thing that happened.
type Entry struct {
	Time  time.Time `json:"time"`
	Actor Actor     `json:"actor"`
	// Action is a stable word, such as machine-armed or certificate-issued.
	Action string `json:"action"`
	// Machine is empty when it is about none.
	Machine string `json:"machine,omitempty"`
	// Before and After are the states around a change; both empty when no state
	// changed.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Detail is one sentence for people. It never holds a secret.
	Detail string `json:"detail,omitempty"`
	// Arguments names the call that an entry comes of with all that the call said: the SHA-256,
	// lower-case hexadecimal, of its procedure, a line end and its message in protobuf's
	// deterministic encoding. Empty where no call was made, or none was read; so are entries of
	// before there was this field.
	Arguments string `json:"arguments,omitempty"`
	// Result is what became of that call: Done, or the word for why it was refused or failed.
	// Empty without a call, and where the call has only begun.
	Result string `json:"result,omitempty"`
}

// Done is the result of a call that did what its entry says. An entry that is committed with
// its change has no other.
const Done = "done"

// Tip is the end of a chain. The zero value is the empty chain.
type Tip struct {
	// Seq is the number of the last entry; the first has 1.
	Seq uint64 `json:"seq"`
	// Hash is its hash, lower-case hexadecimal.
	Hash string `json:"hash"`
}

// sealed is the stored form. Hash covers the exact bytes of Body, so that no
// canonical form of JSON is needed.
type sealed struct {
	Seq  uint64          `json:"seq"`
	Prev string          `json:"prev"`
	Hash string          `json:"hash"`
	Body json.RawMessage `json:"entry"`
}

// domain keeps these hashes apart from all others and names the format.
const domain = "imagectl audit v1\n"

func digest(seq uint64, prev string, body []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s%d\n%s\n", domain, seq, prev)
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// Seal turns an entry into one line (without newline) that follows tip, and
// returns the new tip.
func Seal(tip Tip, e Entry) ([]byte, Tip, error) {
	e.Time = e.Time.UTC()
	body, err := json.Marshal(e)
	if err != nil {
		return nil, tip, fmt.Errorf("sealing audit entry %s: %w", e.Action, err)
	}
	next := Tip{Seq: tip.Seq + 1, Hash: digest(tip.Seq+1, tip.Hash, body)}
	line, err := json.Marshal(sealed{Seq: next.Seq, Prev: tip.Hash, Hash: next.Hash, Body: body})
	if err != nil {
		return nil, tip, fmt.Errorf("sealing audit entry %s: %w", e.Action, err)
	}
	return line, next, nil
}

// Open reads one line and checks it against the tip before it.
func Open(tip Tip, line []byte) (Entry, Tip, error) {
	var s sealed
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Entry{}, tip, fmt.Errorf("reading audit entry %d: %w", tip.Seq+1, err)
	}
	if s.Seq != tip.Seq+1 {
		return Entry{}, tip, fmt.Errorf("reading audit entry %d: found number %d; entries are missing or moved", tip.Seq+1, s.Seq)
	}
	if s.Prev != tip.Hash {
		return Entry{}, tip, fmt.Errorf("reading audit entry %d: it follows %.12s…, but the entry before it is %.12s…", s.Seq, s.Prev, tip.Hash)
	}
	if want := digest(s.Seq, s.Prev, s.Body); s.Hash != want {
		return Entry{}, tip, fmt.Errorf("reading audit entry %d: its content gives %.12s…, it says %.12s…; it was altered", s.Seq, want, s.Hash)
	}
	var e Entry
	if err := json.Unmarshal(s.Body, &e); err != nil {
		return Entry{}, tip, fmt.Errorf("reading audit entry %d: %w", s.Seq, err)
	}
	return e, Tip{Seq: s.Seq, Hash: s.Hash}, nil
}

// Verify checks a whole chain. want is the tip that it must end with.
func Verify(lines iter.Seq2[[]byte, error], want Tip) error {
	var tip Tip
	for line, err := range lines {
		if err != nil {
			return fmt.Errorf("verifying audit log: %w", err)
		}
		if _, tip, err = Open(tip, line); err != nil {
			return fmt.Errorf("verifying audit log: %w", err)
		}
	}
	if tip != want {
		return fmt.Errorf("verifying audit log: it ends with entry %d (%.12s…), want %d (%.12s…)", tip.Seq, tip.Hash, want.Seq, want.Hash)
	}
	return nil
}
