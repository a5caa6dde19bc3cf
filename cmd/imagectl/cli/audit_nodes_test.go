package cli

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// chain seals entries with these actions.
func chain(t *testing.T, salt string, actions ...string) (lines [][]byte, tips []audit.Tip) {
	t.Helper()
	var tip audit.Tip
	for _, a := range actions {
		line, next, err := audit.Seal(tip, audit.Entry{Action: a, Detail: salt, Time: time.Unix(0, 0)})
		if err != nil {
			t.Fatal(err)
		}
		lines, tips, tip = append(lines, line), append(tips, next), next
	}
	return lines, tips
}

// A server that has made its log anew, or cut its end off, is found by what nodes were
// shown; one that was restored says so itself.
func TestNodesTellOfALogThatWasMadeAnew(t *testing.T) {
	t.Parallel()
	ca, err := pki.NewCA("imagectl demo", time.Hour, time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewCA("imagectl demo", time.Hour, time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	saw := func(by *pki.CA, tips ...audit.Tip) (out []*api.AuditHeadsResponse_Seen) {
		for _, tip := range tips {
			b, err := by.Attest(audit.HeadDomain, tip.Statement("demo"))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, &api.AuditHeadsResponse_Seen{Head: &api.AuditHead{Seq: tip.Seq, Hash: tip.Hash, Signature: b}, At: timestamppb.New(time.Unix(0, 0))})
		}
		return out
	}
	honest, true1 := chain(t, "true", "a", "b", "c", "d")
	forged, _ := chain(t, "forged", "a", "b", "c", "d", "e")
	restored, _ := chain(t, "true", "a", "b", "server-restored", "d")
	at := time.Unix(0, 0).Local().Format(time.DateTime)
	for name, c := range map[string]struct {
		lines  [][]byte
		heads  []*api.AuditHeadsResponse_Seen
		lost   []*api.AuditHeadsResponse_Seen
		broken bool
		want   string
	}{
		"as it was":         {honest, saw(ca, true1[0], true1[3]), nil, false, "what nodes were shown is in it; asked: w1"},
		"nothing was shown": {honest, nil, nil, false, "what nodes were shown is in it; asked: w1"},
		"made anew": {forged, saw(ca, true1[1]), nil, true,
			fmt.Sprintf("w1 was shown entry 2 (%.12s…) at %s, and the log has another one there: its end was cut off, or it was made anew", true1[1].Hash, at)},
		"its end cut off": {honest[:2], saw(ca, true1[1], true1[3]), nil, true,
			fmt.Sprintf("w1 was shown entry 4 (%.12s…) at %s, and the log ends before it: its end was cut off, or it was made anew", true1[3].Hash, at)},
		"cut off, and grown again": {forged, nil, saw(ca, true1[3]), true,
			fmt.Sprintf("w1 was shown entry 4 (%.12s…) at %s, and the log has another one there: its end was cut off, or it was made anew", true1[3].Hash, at)},
		"restored": {restored, nil, saw(ca, true1[3]), false,
			fmt.Sprintf("w1 was shown entry 4 (%.12s…) at %s, and the log has another one there; the server was restored from a backup since, says the log", true1[3].Hash, at)},
		"restored, and changed before that": {restored, nil, saw(ca, audit.Tip{Seq: 1, Hash: "0123456789abcdef"}), true,
			"w1 was shown entry 1 (0123456789ab…) at " + at + ", and the log has another one there: its end was cut off, or it was made anew"},
		"a node that lies": {honest, saw(other, audit.Tip{Seq: 9, Hash: "ff"}), nil, false,
			"what nodes were shown is in it; asked: w1\nw1 says that it was shown entry 9, which the server has not signed"},
	} {
		j := judge{witnesses: witnesses{nodes: []string{"w1"}}}
		j.add("demo", "w1", c.heads, []*x509.Certificate{ca.Certificate()})
		j.add("demo", "w1", c.lost, []*x509.Certificate{ca.Certificate()})
		var tip audit.Tip
		for _, line := range c.lines {
			e := auditEntry{}
			var err error
			if e.Entry, e.tip, err = audit.Open(tip, line); err != nil {
				t.Fatal(err)
			}
			tip = e.tip
			j.entry(e)
		}
		said, broken := j.sentences(tip)
		if got := strings.Join(said, "\n"); got != c.want || broken != c.broken {
			t.Errorf("%s: broken %v\n%s\nwant %v\n%s", name, broken, got, c.broken, c.want)
		}
	}
}
