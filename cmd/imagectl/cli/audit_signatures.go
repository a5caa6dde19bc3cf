package cli

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func newAuditSignatures(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "signatures",
		Short: "List how far control planes have followed the audit log and signed it",
		Long: "List how far control planes have followed the audit log, entry by entry, and signed\n" +
			"it with their own keys, as the server keeps it. With -o json the signatures come with\n" +
			"the nodes' certificates; imagectl audit verify --log --signatures checks a log with\n" +
			"that where nobody can be asked.",
		Example: "  imagectl audit signatures\n  imagectl audit signatures -o json >signatures.json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ListAuditSignatures(cmd.Context(), connect.NewRequest(&api.ListAuditSignaturesRequest{}))
			if err != nil {
				return r.explain(err)
			}
			w := bufio.NewWriter(g.stdio.Out)
			if f == formatJSON {
				b, err := json.MarshalIndent(signatureFile{resp.Msg.GetWitnesses()}, "", "  ")
				if err != nil {
					return err
				}
				fmt.Fprintf(w, "%s\n", b)
				return w.Flush()
			}
			var rows [][]string
			for _, each := range resp.Msg.GetWitnesses() {
				s, err := r.signer(each)
				if err != nil {
					return err
				}
				rows = append(rows, []string{s.Node, strconv.FormatUint(s.Since.Seq, 10), strconv.FormatUint(s.Seq, 10), s.At.Local().Format(time.DateTime), strconv.Itoa(len(s.Lost)), s.key[:16]})
			}
			if err := table(w, []string{"NODE", "FROM", "TO", "TIME", "LOST", "KEY"}, rows); err != nil {
				return err
			}
			return w.Flush()
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

// signatureFile is what -o json writes. encoding/json, for protojson is never twice the same.
type signatureFile struct {
	Signatures []*api.AuditWitness `json:"signatures"`
}

// signer is what a control plane has signed, checked.
type signer struct {
	audit.Witness
	// key is the SHA-256 of the key's SubjectPublicKeyInfo, as the log names it.
	key string
}

// signer checks a signature by what the context file trusts.
func (r *remote) signer(w *api.AuditWitness) (signer, error) {
	return checkSigner(r.Cluster, r.signers(), w)
}

// checkSigner accepts what a node of this cluster has signed with the key of its certificate,
// while that was good.
func checkSigner(cluster string, ca []*x509.Certificate, w *api.AuditWitness) (signer, error) {
	said, err := audit.ParseWitness(w.GetStatement())
	if err != nil {
		return signer{}, err
	}
	fail := func(err error) (signer, error) {
		return signer{}, fmt.Errorf("checking what %s has signed: %w", said.Node, err)
	}
	leaf, err := pki.ParseCertificatePEM([]byte(w.GetCertificatePem()))
	if err != nil {
		return fail(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pki.Pool(ca), CurrentTime: said.At, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fail(err)
	}
	who, err := pki.IdentityOf(leaf, cluster)
	if err != nil {
		return fail(err)
	}
	if who.Kind != pki.KindNode || who.Name != said.Node || said.Cluster != cluster {
		return fail(fmt.Errorf("the certificate is of %s", who))
	}
	if err := pki.CheckAttested(leaf, audit.WitnessDomain, w.GetStatement(), w.GetSignature()); err != nil {
		return fail(err)
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return signer{said, hex.EncodeToString(sum[:])}, nil
}

// addSigned takes what a node has signed, once for each node.
func (w *witnesses) addSigned(cluster string, ca []*x509.Certificate, s *api.AuditWitness) {
	if s == nil {
		return
	}
	by, err := checkSigner(cluster, ca, s)
	if err != nil {
		w.forged = append(w.forged, err.Error())
		return
	}
	if _, twice := w.signers[by.Node]; twice {
		return
	}
	if w.signers == nil {
		w.signers = map[string]signer{}
	}
	w.signers[by.Node] = by
	for _, tip := range slices.Compact([]audit.Tip{by.Since, by.Tip}) {
		w.heads = append(w.heads, shown{node: by.Node, signed: true, Seen: audit.Seen{Head: audit.Head{Tip: tip}, At: by.At}})
	}
	for _, l := range by.Lost {
		w.heads = append(w.heads, shown{node: by.Node, signed: true, Seen: audit.Seen{Head: audit.Head{Tip: l.Tip}, At: l.At}})
	}
}

// addSignatures adds those that the server keeps, for nodes that did not answer themselves.
func (r *remote) addSignatures(ctx context.Context, w *witnesses, ca []*x509.Certificate) error {
	resp, err := r.operator().ListAuditSignatures(ctx, connect.NewRequest(&api.ListAuditSignaturesRequest{}))
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return nil // a server of before
	}
	if err != nil {
		return r.explain(err)
	}
	for _, s := range resp.Msg.GetWitnesses() {
		w.addSigned(r.Cluster, ca, s)
	}
	return nil
}

// readSignatures reads what imagectl audit signatures -o json wrote.
func (g *globals) readSignatures(file string) (witnesses, error) {
	r, err := g.openContext()
	if err != nil {
		return witnesses{}, err
	}
	ca := r.signers()
	b, err := os.ReadFile(file)
	if err != nil {
		return witnesses{}, err
	}
	var all signatureFile
	if err := json.Unmarshal(b, &all); err != nil {
		return witnesses{}, fmt.Errorf("reading %s: %w; want what imagectl audit signatures -o json wrote", file, err)
	}
	w := witnesses{asked: true}
	for _, s := range all.Signatures {
		w.addSigned(r.Cluster, ca, s)
	}
	w.sort()
	return w, nil
}

// keyOf notes which keys the log approves, and whose were taken away lately.
func (j *judge) keyOf(e auditEntry) {
	switch e.Action {
	case "key-approved", "key-replaced":
		key, _, _ := strings.Cut(strings.TrimPrefix(e.Detail, "key "), ",")
		if j.approved == nil {
			j.approved = map[string]bool{}
		}
		j.approved[e.Machine+" "+key] = true
	case "machine-retired", "machine-replaced", "key-withdrawn":
	default:
		return
	}
	if e.tip.Seq > j.since {
		if j.replaced == nil {
			j.replaced = map[string]bool{}
		}
		j.replaced[e.Machine] = true
	}
}

// memory is what to remember of a log that ends with tip. Keys that nobody asked for stay.
func (j *judge) memory(tip audit.Tip) memory {
	m := memory{Tip: tip, Keys: map[string]string{}}
	if !j.asked && len(j.remembered) > 0 {
		m.Keys, m.KeysSeq = j.remembered, j.since
		return m
	}
	for node, s := range j.signers {
		m.Keys[node] = s.key
	}
	return m
}

// signatures are what to say of those who signed the log, which ends with tip, and whether
// something is wrong with them. What they signed is compared with the log by sentences.
func (j *judge) signatures(tip audit.Tip) (out []string, broken bool) {
	for _, node := range slices.Sorted(maps.Keys(j.signers)) {
		s := j.signers[node]
		if !slices.ContainsFunc(j.missing, func(h shown) bool { return h.signed && h.node == node }) {
			text := fmt.Sprintf("%s has followed it from entry %d to %d and signed that at %s", node, s.Since.Seq, s.Seq, s.At.Local().Format(time.DateTime))
			if n := tip.Seq - s.Seq; n > 0 {
				text += fmt.Sprintf("; %d entries after that are not signed", n)
			}
			out = append(out, text)
		}
		if !j.approved[node+" "+s.key] {
			out = append(out, fmt.Sprintf("%s signs with key %.16s…, which no entry of the log approves", node, s.key))
			broken = true
		}
	}
	for _, node := range slices.Sorted(maps.Keys(j.remembered)) {
		s, signs := j.signers[node]
		switch {
		case !j.asked:
			out = append(out, node+" signed the log the last time; nobody was asked for its signature now")
		case signs && s.key == j.remembered[node] || j.replaced[node]:
		case signs:
			out = append(out, fmt.Sprintf("%s signed with key %.16s… the last time, now with %.16s…, and no entry since tells of that", node, j.remembered[node], s.key))
			broken = true
		default:
			out = append(out, fmt.Sprintf("%s signed the log the last time, and there is no signature of its now", node))
			broken = true
		}
	}
	return append(out, j.forged...), broken || len(j.forged) > 0
}
