package cli

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// signingNode is a control plane that signs.
type signingNode struct {
	key  crypto.Signer
	cert []byte
}

func newSigningNode(t *testing.T, ca *pki.CA, cluster, name string) signingNode {
	t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := pki.OwnKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pki.Node(pki.Machine{Cluster: cluster, Name: name}, pki.Lifetimes{Agent: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Sign(p, own, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signingNode{key, issued.PEM}
}

func (n signingNode) fingerprint(t *testing.T) string {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(n.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

func (n signingNode) sign(t *testing.T, w audit.Witness) *api.AuditWitness {
	t.Helper()
	b, err := w.Statement()
	if err != nil {
		t.Fatal(err)
	}
	s, err := pki.Attest(n.key, rand.Reader, audit.WitnessDomain, b)
	if err != nil {
		t.Fatal(err)
	}
	return &api.AuditWitness{Statement: b, Signature: s, CertificatePem: string(n.cert)}
}

// Whoever owns the server can change the log and seal it again: what control planes have
// signed shows it, without anybody who is asked.
func TestSignaturesTellOfEveryTampering(t *testing.T) {
	t.Parallel()
	ca, err := pki.NewCA("imagectl demo", 2*time.Hour, 72*time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewCA("imagectl demo", 2*time.Hour, 72*time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cp1, later := newSigningNode(t, ca, "demo", "cp1"), newSigningNode(t, ca, "demo", "cp1")
	stranger, foreign := newSigningNode(t, other, "demo", "cp1"), newSigningNode(t, ca, "demo", "cp2")
	elsewhere := newSigningNode(t, ca, "prod", "cp1")
	seal := func(all []audit.Entry) (lines [][]byte, tips []audit.Tip) {
		var tip audit.Tip
		for _, e := range all {
			line, next, err := audit.Seal(tip, e)
			if err != nil {
				t.Fatal(err)
			}
			lines, tips, tip = append(lines, line), append(tips, next), next
		}
		return lines, tips
	}
	approved := func(n signingNode) audit.Entry {
		return audit.Entry{Action: "key-approved", Machine: "cp1", Detail: "key " + n.fingerprint(t) + ", code X"}
	}
	entry := func(action string) audit.Entry { return audit.Entry{Action: action} }
	as := []audit.Entry{approved(cp1), entry("b"), entry("c"), entry("d"), entry("e")}
	honest, tips := seal(as)
	change := func(f func([]audit.Entry) []audit.Entry) [][]byte {
		lines, _ := seal(f(slices.Clone(as)))
		return lines
	}
	at := time.Now().UTC().Truncate(time.Second)
	said := audit.Witness{Cluster: "demo", Node: "cp1", Tip: tips[4], Since: tips[1], At: at}
	good := cp1.sign(t, said)
	early := said
	early.Tip = tips[3]
	lossy := said
	lossy.Lost = []audit.Loss{{Tip: audit.Tip{Seq: 4, Hash: strings.Repeat("f", 64)}, At: at}}
	altered := cp1.sign(t, said)
	altered.Statement = []byte(strings.Replace(string(altered.Statement), `"seq":2`, `"seq":3`, 1))
	late := said
	late.At = at.Add(24 * time.Hour)
	of, swapped := cp1.sign(t, said), foreign.sign(t, said)
	of.CertificatePem = string(foreign.cert)
	when := at.Local().Format(time.DateTime)
	const cut = ": its end was cut off, or it was made anew"
	anew := func(i int, how string) string {
		return fmt.Sprintf("cp1 has signed entry %d (%.12s…) at %s, and the log %s", i+1, tips[i].Hash, when, how)
	}
	fine := "cp1 has followed it from entry 2 to 5 and signed that at " + when
	keys := map[string]string{"cp1": cp1.fingerprint(t)}
	restored := change(func(e []audit.Entry) []audit.Entry { return append(e[:3], entry("server-restored"), entry("f")) })
	replaced, retips := seal(append(slices.Clone(as), audit.Entry{Action: "machine-replaced", Machine: "cp1"}, approved(later)))
	anewSigned := audit.Witness{Cluster: "demo", Node: "cp1", Tip: retips[6], Since: retips[6], At: at}
	for what, c := range map[string]struct {
		lines  [][]byte
		signed []*api.AuditWitness
		before map[string]string
		broken bool
		want   []string
	}{
		"as it was":               {honest, []*api.AuditWitness{good}, keys, false, []string{fine}},
		"not signed to its end":   {honest, []*api.AuditWitness{cp1.sign(t, early)}, nil, false, []string{"cp1 has followed it from entry 2 to 4 and signed that at " + when + "; 1 entries after that are not signed"}},
		"nobody signs":            {honest, nil, nil, false, nil},
		"an entry changed":        {change(func(e []audit.Entry) []audit.Entry { e[2].Detail = "x"; return e }), []*api.AuditWitness{good}, nil, true, []string{anew(4, "has another one there"+cut)}},
		"an entry changed before": {change(func(e []audit.Entry) []audit.Entry { e[0].Actor.Source = "x"; return e }), []*api.AuditWitness{good}, nil, true, []string{anew(1, "has another one there"+cut), anew(4, "has another one there"+cut)}},
		"an entry removed":        {change(func(e []audit.Entry) []audit.Entry { return slices.Delete(e, 2, 3) }), []*api.AuditWitness{good}, nil, true, []string{anew(4, "ends before it"+cut)}},
		"two entries swapped":     {change(func(e []audit.Entry) []audit.Entry { e[2], e[3] = e[3], e[2]; return e }), []*api.AuditWitness{good}, nil, true, []string{anew(4, "has another one there"+cut)}},
		"its tail cut off":        {honest[:3], []*api.AuditWitness{good}, nil, true, []string{anew(4, "ends before it"+cut)}},
		"cut off and grown again": {change(func(e []audit.Entry) []audit.Entry { return append(e[:3], entry("x"), entry("y"), entry("z")) }), []*api.AuditWitness{good}, nil, true, []string{anew(4, "has another one there"+cut)}},
		"made anew, and the node has seen it": {honest, []*api.AuditWitness{cp1.sign(t, lossy)}, nil, true,
			[]string{fmt.Sprintf("cp1 has signed entry 4 (ffffffffffff…) at %s, and the log has another one there%s", when, cut)}},
		"restored":                     {restored, []*api.AuditWitness{good}, keys, false, []string{anew(4, "has another one there; the server was restored from a backup since, says the log")}},
		"signed by another CA's node":  {honest, []*api.AuditWitness{stranger.sign(t, said)}, nil, true, []string{"checking what cp1 has signed: x509: certificate signed by unknown authority"}},
		"signed by another node":       {honest, []*api.AuditWitness{swapped}, nil, true, []string{"checking what cp1 has signed: the certificate is of imagectl://demo/node/cp2"}},
		"with another's certificate":   {honest, []*api.AuditWitness{of}, nil, true, []string{"checking what cp1 has signed: the certificate is of imagectl://demo/node/cp2"}},
		"of another cluster":           {honest, []*api.AuditWitness{elsewhere.sign(t, said)}, nil, true, []string{"checking what cp1 has signed: reading identity of CN=cp1: it belongs to cluster prod, this is demo"}},
		"altered after it was signed":  {honest, []*api.AuditWitness{altered}, nil, true, []string{"checking what cp1 has signed: checking a statement (imagectl audit witness v1): the signature is not by cp1"}},
		"signed after its certificate": {honest, []*api.AuditWitness{cp1.sign(t, late)}, nil, true, []string{"checking what cp1 has signed: x509: certificate has expired or is not yet valid"}},
		"signed with a key that nobody approved": {honest, []*api.AuditWitness{later.sign(t, said)}, nil, true,
			[]string{fine, fmt.Sprintf("cp1 signs with key %.16s…, which no entry of the log approves", later.fingerprint(t))}},
		"a signature taken away": {honest, nil, keys, true, []string{"cp1 signed the log the last time, and there is no signature of its now"}},
		"another key since, and no entry": {honest, []*api.AuditWitness{good}, map[string]string{"cp1": later.fingerprint(t)}, true,
			[]string{fine, fmt.Sprintf("cp1 signed with key %.16s… the last time, now with %.16s…, and no entry since tells of that", later.fingerprint(t), cp1.fingerprint(t))}},
		"another key since, as the log says": {replaced, []*api.AuditWitness{later.sign(t, anewSigned)}, keys, false, []string{"cp1 has followed it from entry 7 to 7 and signed that at " + when}},
		"replaced, and signs no more":        {replaced, nil, keys, false, nil},
	} {
		j := judge{witnesses: witnesses{asked: true}, remembered: c.before, since: 5}
		for _, s := range c.signed {
			j.addSigned("demo", []*x509.Certificate{ca.Certificate()}, s)
		}
		j.sort()
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
		got, broken := j.sentences(tip)
		match := slices.EqualFunc(got, c.want, func(g, w string) bool { return strings.HasPrefix(g, w) })
		if !match || broken != c.broken {
			t.Errorf("%s: broken %v\n%s\nwant %v\n%s", what, broken, strings.Join(got, "\n"), c.broken, strings.Join(c.want, "\n"))
		}
	}
}

// Who does not ask for signatures learns nothing of them, and forgets no key.
func TestKeysStayRememberedWhileNobodyIsAsked(t *testing.T) {
	t.Parallel()
	keys := map[string]string{"cp1": "00"}
	tip := audit.Tip{Seq: 9, Hash: "ff"}
	j := judge{remembered: keys, since: 5}
	said, broken := j.sentences(tip)
	if want := []string{"cp1 signed the log the last time; nobody was asked for its signature now"}; broken || !slices.Equal(said, want) {
		t.Errorf("got %q, broken %v, want %q", said, broken, want)
	}
	if got := j.memory(tip); got.Tip != tip || got.KeysSeq != 5 || !maps.Equal(got.Keys, keys) {
		t.Errorf("it remembers %+v", got)
	}
	j = judge{witnesses: witnesses{asked: true}, since: 5}
	if got := j.memory(tip); got.KeysSeq != 0 || len(got.Keys) != 0 {
		t.Errorf("nobody signs: it remembers %+v", got)
	}
}
