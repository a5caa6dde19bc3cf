package agent

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// authorityPath holds the CAs that the server has told this machine to trust.
const authorityPath = StateDir + "/server-ca.json"

// rollTime is the time in which all agents renew their certificates when another CA signs:
// a thousand of them are two a second.
const rollTime = 10 * time.Minute

// authority is whom this machine takes for its server: the CAs of node.json, until the
// server has told of others. It is safe for concurrent use.
type authority struct {
	host *host.Host
	// given is what node.json says.
	given []*x509.Certificate

	mu   sync.Mutex
	told []*x509.Certificate // nil for nothing
}

// toldFile is the content of authorityPath.
type toldFile struct {
	// Given is node.json's ca: with another one, what was told is void.
	Given string `json:"given"`
	CA    string `json:"ca"`
}

func loadAuthority(h *host.Host, conf nodeconf.Config) (*authority, error) {
	given, err := conf.Roots()
	if err != nil {
		return nil, fmt.Errorf("reading the server's CA: %w", err)
	}
	a := &authority{host: h, given: given}
	b, err := h.ReadFile(authorityPath)
	if notExist(err) {
		return a, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the server's CA: %w", err)
	}
	var f toldFile
	if json.Unmarshal(b, &f) == nil && f.Given == a.givenPEM() {
		// What cannot be read counts for nothing: the server shows what leads from node.json's.
		a.told, _ = pki.ParseCertificatesPEM([]byte(f.CA))
	}
	return a, nil
}

func (a *authority) givenPEM() string { return string(pki.EncodeCertificates(a.given)) }

// roots are the CAs to trust; the first signs. They must not be changed.
func (a *authority) roots() []*x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.told) > 0 {
		return a.told
	}
	return a.given
}

// learn takes what the server says, over a connection to it, and says whether it is news. It
// counts when it is on the disk.
func (a *authority) learn(pem string) (bool, error) {
	certs, err := pki.ParseCertificatesPEM([]byte(pem))
	if err != nil {
		return false, fmt.Errorf("learning of the server's CA: %w", err)
	}
	for _, c := range certs {
		if !c.IsCA {
			return false, fmt.Errorf("learning of the server's CA: %s is no CA", c.Subject)
		}
	}
	if len(certs) == 0 || string(pki.EncodeCertificates(a.roots())) == string(pki.EncodeCertificates(certs)) {
		return false, nil // an older server says nothing
	}
	b, err := json.MarshalIndent(toldFile{Given: a.givenPEM(), CA: pem}, "", "  ")
	if err == nil {
		err = a.host.WriteFile(authorityPath, b, 0o644)
	}
	if err != nil {
		return false, fmt.Errorf("keeping the server's CA: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = certs
	return true, nil
}

// digests are what a report says of roots.
func (a *authority) digests() []string {
	var out []string
	for _, c := range a.roots() {
		out = append(out, pki.Digest(c))
	}
	return out
}

// heed takes the CAs of an answer.
func (a *Agent) heed(pem string) {
	news, err := a.authority.learn(pem)
	if err != nil {
		a.Log.Error("the server's word on its CA is of no use; the last one stays", "err", err)
	}
	if news {
		a.Log.Info("the server has told which CAs to trust", "cas", a.authority.digests())
	}
}

// follow renews a certificate that is another CA's than the one that signs now, at some
// moment of rollTime.
func (a *Agent) follow(ctx context.Context, leaf *x509.Certificate, now time.Time) {
	if leaf.CheckSignatureFrom(a.authority.roots()[0]) == nil {
		a.rollAt = time.Time{}
		return
	}
	if a.rollAt.IsZero() {
		a.rollAt = now.Add(time.Duration(a.Jitter() * float64(rollTime)))
	}
	if now.Before(a.rollAt) || now.Before(a.renewAfter) {
		return
	}
	// Also when it is one of the old CA again: of several servers one may be behind.
	a.renewAfter = now.Add(time.Minute)
	if err := a.renew(ctx); err != nil {
		a.Log.Warn("getting a certificate of the server's new CA failed", "err", err)
	}
}
