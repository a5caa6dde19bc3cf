package serverapi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Names of CAs, in the store, on the wire and for people.
const (
	caImagectl   = "imagectl"
	caEtcd       = "etcd"
	caKubernetes = "kubernetes"
	caFrontProxy = "front-proxy"
)

const (
	// maxCertificates is how many certificates of one holder are remembered, several
	// times what one has in a month of renewals. A node gets no more; of a server and
	// an operator the oldest of the same profile are forgotten, since they must not lock
	// themselves out, nor outlive being revoked by having others made.
	maxCertificates = 256
	// keepEnded is how long a certificate counts after its end, for nodes whose clock
	// is behind.
	keepEnded = 7 * 24 * time.Hour
)

// holder is whom a certificate was given to: node/w1, operator/ada, server/imagectl.
type holder string

func holderOf(kind pki.Kind, name string) holder { return holder(string(kind) + "/" + name) }

// machine is the name of the machine that holds it; empty for others.
func (h holder) machine() string {
	name, ok := strings.CutPrefix(string(h), string(pki.KindNode)+"/")
	if !ok {
		return ""
	}
	return name
}

// operator is the name of the person that holds it; empty for others.
func (h holder) operator() string {
	name, ok := strings.CutPrefix(string(h), string(pki.KindOperator)+"/")
	if !ok {
		return ""
	}
	return name
}

// certificate is what is remembered of an issued one until it has ended, so that it
// can be revoked.
type certificate struct {
	Serial  string `json:"serial"`
	CA      string `json:"ca"`
	Profile string `json:"profile"`
	Subject string `json:"subject"`
	// Authority is the pki.KeyID of the CA; empty for one from before that was kept.
	Authority string `json:"authority,omitempty"`
	// Key is the fingerprint of its key.
	Key       string    `json:"key"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

func (c certificate) ended(now time.Time) bool { return now.Sub(c.NotAfter) > keepEnded }

const valueCertificates = "certificates/" // + holder

// issued records a certificate: in the log, and among those of its holder.
func (c *change) issued(h holder, ca, profile string, i pki.Issued) error {
	c.log(audit.Entry{Action: "certificate-issued", Machine: h.machine(),
		Detail: fmt.Sprintf("%s, subject %s, serial %s, until %s", profile, i.Certificate.Subject, i.Serial(), i.Certificate.NotAfter.Format(time.RFC3339))})
	if ca == caImagectl {
		// Signed before the transaction: another CA may be the one that is trusted by now.
		var r rollover
		if _, err := c.tx.Value(valueRollover, &r); err != nil {
			return err
		}
		if !r.trusts(pki.IssuerKeyID(i.Certificate)) {
			return errRolled()
		}
	}
	if ca == caEtcd {
		if err := c.stillSigns(i); err != nil {
			return err
		}
	}
	all, err := c.certificates(h)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(o certificate) bool { return o.ended(c.now) })
	if h.machine() != "" && len(all) >= maxCertificates {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%s holds %d certificates that have not ended and gets no more; imagectl certs ls shows them", h, len(all)))
	}
	same := 0
	for i := len(all) - 1; i >= 0 && h.machine() == ""; i-- {
		if all[i].Profile != profile {
			continue
		}
		if same++; same >= maxCertificates {
			all = slices.Delete(all, i, i+1)
		}
	}
	all = append(all, certificate{
		Serial: i.Serial(), CA: ca, Profile: profile, Subject: i.Certificate.Subject.String(), Key: fingerprint(i.Certificate), Authority: pki.IssuerKeyID(i.Certificate),
		NotBefore: i.Certificate.NotBefore, NotAfter: i.Certificate.NotAfter,
	})
	return c.tx.PutValue(valueCertificates+string(h), all)
}

// certificates are those of a holder, oldest first.
func (c *change) certificates(h holder) ([]certificate, error) {
	var all []certificate
	_, err := c.tx.Value(valueCertificates+string(h), &all)
	return all, err
}

// superseded says whether a newer certificate of the same holder took the place of
// one. Operators and what lives for minutes have several at a time.
func superseded(c certificate, all []certificate) bool {
	switch c.Profile {
	case profileOperator, profileKubeconfig, profileJoin:
		return false
	}
	newest := slices.MaxFunc(all, func(a, b certificate) int {
		return cmp.Or(cmp.Compare(btoi(a.Profile == c.Profile), btoi(b.Profile == c.Profile)), a.NotBefore.Compare(b.NotBefore))
	})
	return newest.Profile == c.Profile && newest.NotBefore.After(c.NotBefore)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
