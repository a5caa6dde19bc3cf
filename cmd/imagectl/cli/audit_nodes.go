package cli

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// askNode is how long one node has to tell what it was shown.
const askNode = 10 * time.Second

// shown is what a node says that the server has shown it.
type shown struct {
	node string
	// signed: it followed the log to there, and signed that.
	signed bool
	audit.Seen
}

// witnesses are all that nodes say, and what is to be said of those that say nothing.
type witnesses struct {
	heads  []shown
	nodes  []string
	silent []string
	// asked: whoever signs the log would be among the signers.
	asked bool
	// signers are the control planes whose signature is good, forged what is to be said of
	// those that are not.
	signers map[string]signer
	forged  []string
}

// askWitnesses asks every node whose address is known, past the server: whoever has made
// the log anew would not pass on what shows it.
func (r *remote) askWitnesses(ctx context.Context) (witnesses, error) {
	resp, err := r.operator().ListMachines(ctx, connect.NewRequest(&api.ListMachinesRequest{}))
	if err != nil {
		return witnesses{}, r.explain(err)
	}
	ca := r.signers()
	machines := resp.Msg.GetMachines()
	answers, failures := make([]*api.AuditHeadsResponse, len(machines)), make([]error, len(machines))
	var g errgroup.Group
	g.SetLimit(16)
	for i, m := range machines {
		if m.GetAddress() == "" || m.GetState() == "retired" {
			continue
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, askNode)
			defer cancel()
			got, err := r.node(m.GetName(), net.JoinHostPort(m.GetAddress(), nodePort)).AuditHeads(ctx, connect.NewRequest(&api.AuditHeadsRequest{}))
			if failures[i] = err; err == nil {
				answers[i] = got.Msg
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return witnesses{}, err
	}
	var out witnesses
	for i, m := range machines {
		switch {
		case failures[i] != nil:
			var ce *connect.Error
			why := failures[i].Error()
			if errors.As(failures[i], &ce) {
				why = ce.Message()
			}
			out.silent = append(out.silent, fmt.Sprintf("%s does not say what it was shown: %s", m.GetName(), why))
		case answers[i] != nil:
			out.nodes = append(out.nodes, m.GetName())
			out.add(r.Cluster, m.GetName(), answers[i].GetHeads(), ca)
			out.add(r.Cluster, m.GetName(), answers[i].GetLost(), ca)
			out.addSigned(r.Cluster, ca, answers[i].GetWitness())
		}
	}
	if err := r.addSignatures(ctx, &out, ca); err != nil {
		return witnesses{}, err
	}
	out.asked = true
	out.sort()
	return out, nil
}

// sort brings the heads into the order of the log.
func (w *witnesses) sort() {
	slices.SortFunc(w.heads, func(a, b shown) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), strings.Compare(a.node, b.node))
	})
}

// add takes what the server has signed; a node may say anything else.
func (w *witnesses) add(cluster, node string, heads []*api.AuditHeadsResponse_Seen, ca []*x509.Certificate) {
	for _, h := range heads {
		s := shown{node: node, Seen: audit.Seen{At: h.GetAt().AsTime(), Head: audit.Head{Tip: audit.Tip{Seq: h.GetHead().GetSeq(), Hash: h.GetHead().GetHash()}, Signature: h.GetHead().GetSignature()}}}
		if err := pki.CheckAttestedByAny(ca, audit.HeadDomain, s.Statement(cluster), s.Signature); err != nil {
			w.silent = append(w.silent, fmt.Sprintf("%s says that it was shown entry %d, which the server has not signed", node, s.Seq))
			continue
		}
		w.heads = append(w.heads, s)
	}
}

// judge compares what nodes were shown with the log.
type judge struct {
	witnesses
	next     int
	missing  []shown
	restored []uint64 // entries of the log that say that it goes on after a backup
	// approved are keys that an entry approves, replaced machines whose key another entry
	// behind since takes away.
	approved, replaced map[string]bool
	// remembered are the keys of before, by node, of when the log ended with since.
	remembered map[string]string
	since      uint64
}

// entry takes the next entry of the log.
func (j *judge) entry(e auditEntry) {
	if e.Action == "server-restored" {
		j.restored = append(j.restored, e.tip.Seq)
	}
	j.keyOf(e)
	for ; j.next < len(j.heads) && j.heads[j.next].Seq <= e.tip.Seq; j.next++ {
		if h := j.heads[j.next]; h.Tip != e.tip {
			j.missing = append(j.missing, h)
		}
	}
}

// sentences are what to say when the log has ended, and whether somebody was shown what it
// does not hold, and no restore explains that.
func (j *judge) sentences(tip audit.Tip) (out []string, broken bool) {
	j.missing = append(j.missing, j.heads[j.next:]...)
	if len(j.missing) == 0 && len(j.nodes) > 0 {
		out = append(out, "what nodes were shown is in it; asked: "+strings.Join(j.nodes, ", "))
	}
	for _, h := range j.missing {
		did := "was shown"
		if h.signed {
			did = "has signed"
		}
		what := fmt.Sprintf("%s %s entry %d (%.12s…) at %s, and the log ", h.node, did, h.Seq, h.Hash, h.At.Local().Format(time.DateTime))
		if h.Seq > tip.Seq {
			what += "ends before it"
		} else {
			what += "has another one there"
		}
		if slices.ContainsFunc(j.restored, func(seq uint64) bool { return seq <= h.Seq }) {
			what += "; the server was restored from a backup since, says the log"
		} else {
			what += ": its end was cut off, or it was made anew"
			broken = true
		}
		out = append(out, what)
	}
	said, bad := j.signatures(tip)
	return append(append(out, said...), j.silent...), broken || bad
}
