package agent

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/enrol"
)

const (
	// poll is how long the server may hold a Sync.
	poll = 30 * time.Second
	// settle joins reports that come at once into one Sync.
	settle = 200 * time.Millisecond
	// announceEvery is how often a machine that waits shows its code.
	announceEvery = 30 * time.Second
)

// report is what a mode tells the server with each Sync.
type report struct {
	steps      []*api.StepStatus
	etcd       *api.EtcdObserved
	kubernetes *api.KubernetesObserved
	installed  bool
	failure    string
	// held are the revocation lists of an installed node.
	held []*api.HeldList
	// backups are the names of those that this node keeps, newest first; backupProblem is
	// why the newest is not among them.
	backups       []string
	backupProblem string
	// witness is how far a control plane has followed the audit log; nil for nothing.
	witness *api.AuditWitness
	// order is what became of the last order, of a mode that obeys some.
	order *api.OrderReport
	obeys bool
	// vip are the API's addresses that this control plane has.
	vip []string
}

// talk keeps the machine enrolled and the server informed: it enrols, syncs,
// hands each directive to handle, and renews the certificate. It returns when
// ctx ends. changed wakes a waiting Sync because there is news.
func (a *Agent) talk(ctx context.Context, mode api.Mode, changed <-chan struct{}, news func() report, handle func(context.Context, *api.SyncResponse)) error {
	var revision uint64
	var back backoff
	first := true
	for ctx.Err() == nil {
		if err := a.ensureEnrolled(ctx, mode); err != nil {
			return err
		}
		asked := a.Now()
		resp, err := a.sync(ctx, mode, revision, first, changed, news())
		switch {
		case ctx.Err() != nil:
		case err == nil && resp == nil: // there is news
		case err == nil:
			back.reset()
			first = false
			revision = resp.GetRevision()
			a.setClock(resp.GetServerTime(), a.Now().Sub(asked))
			a.heed(resp.GetCaPem())
			handle(ctx, resp)
		case connect.CodeOf(err) == connect.CodeUnauthenticated:
			// The server does not know this certificate any more. Enrolling again with
			// the same key is harmless: an operator decides.
			a.Log.Warn("the server refuses our certificate; enrolling again", "err", err)
			if err := a.id.drop(); err != nil {
				return err
			}
			a.servers.reconnect()
			revision = 0
			a.rest(ctx, &back)
		case turnedAway(err):
			// Most likely our certificate has expired and our clock has not noticed. The
			// old one is kept: whoever is on the wire can send an alert too.
			a.Log.Warn("the server ends the handshake; enrolling again", "err", err)
			revision, first = 0, true
			a.rest(ctx, &back)
			if err := a.enrol(ctx, mode); err != nil {
				return err
			}
		default:
			a.Log.Warn("the server does not answer", "server", a.servers.current().url, "err", err)
			a.servers.failed(err)
			// Another server counts revisions of its own.
			revision, first = 0, true
			a.rest(ctx, &back)
		}
	}
	return nil
}

// sync makes one call. A nil response without an error means that there is news
// to tell first.
func (a *Agent) sync(ctx context.Context, mode api.Mode, revision uint64, first bool, changed <-chan struct{}, r report) (*api.SyncResponse, error) {
	facts := a.Host.Facts()
	req := &api.SyncRequest{
		BootId: facts.BootID, Mode: mode, AgentVersion: a.Version, Facts: a.wireFacts(facts), Steps: r.steps, Etcd: r.etcd, Kubernetes: r.kubernetes,
		KnownRevision: revision, WaitMs: uint32(poll.Milliseconds()), Installed: r.installed, Failure: r.failure, Address: a.servers.address(ctx),
		Held: r.held, Backups: r.backups, BackupProblem: r.backupProblem, Witness: r.witness, Trusts: a.authority.digests(), Order: r.order, Obeys: r.obeys, HoldsVip: r.vip,
	}
	if first {
		req.WaitMs = 0
	}
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		resp *connect.Response[api.SyncResponse]
		err  error
	}
	done := make(chan answer, 1)
	sent := a.Now()
	go func() {
		resp, err := a.servers.current().agent.Sync(call, connect.NewRequest(req))
		done <- answer{resp, err}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			return nil, got.err
		}
		return got.resp.Msg, nil
	case <-changed:
	}
	// The report on its way has to arrive, or a quick series of changes would
	// starve the server of every one of them.
	if wait := settle - a.Now().Sub(sent); wait > 0 {
		_ = pause(ctx, wait)
	}
	cancel()
	got := <-done
	if got.err == nil {
		return got.resp.Msg, nil
	}
	if connect.CodeOf(got.err) == connect.CodeCanceled {
		return nil, ctx.Err()
	}
	return nil, got.err
}

// turnedAway says whether the other side ended the handshake with an alert, as it
// does when it does not take our certificate.
func turnedAway(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// ensureEnrolled returns with a certificate that is good now, or with ctx's end.
func (a *Agent) ensureEnrolled(ctx context.Context, mode api.Mode) error {
	_, leaf := a.id.current()
	now := a.Now()
	switch {
	case leaf == nil:
		return a.enrol(ctx, mode)
	case now.After(leaf.NotAfter):
		a.Log.Warn("our certificate has expired; enrolling again", "expired", leaf.NotAfter)
		return a.enrol(ctx, mode)
	case now.After(renewAt(leaf)) && now.After(a.renewAfter):
		if err := a.renew(ctx); err != nil {
			a.Log.Warn("renewing our certificate failed; it stays good for now", "until", leaf.NotAfter, "err", err)
			a.renewAfter = now.Add(min(time.Hour, leaf.NotAfter.Sub(now)/10))
		}
	default:
		a.follow(ctx, leaf, now)
	}
	return nil
}

func (a *Agent) renew(ctx context.Context) error {
	csr, err := request(a.Rand, a.id.key)
	if err != nil {
		return err
	}
	resp, err := a.servers.current().agent.IssueCertificates(ctx, connect.NewRequest(&api.IssueCertificatesRequest{
		Items: []*api.IssueCertificatesRequest_Item{{Profile: api.CertificateProfile_CERTIFICATE_PROFILE_NODE, CsrDer: csr}},
	}))
	if err != nil {
		return err
	}
	if n := len(resp.Msg.GetItems()); n != 1 {
		return fmt.Errorf("renewing our certificate: the server sent %d certificates, want 1", n)
	}
	renewed := []byte(resp.Msg.GetItems()[0].GetCertificatePem())
	chain, err := parseChain(renewed)
	if err != nil {
		return fmt.Errorf("renewing our certificate: %w", err)
	}
	if err := notGood(chain[0], a.Now()); err != nil {
		return fmt.Errorf("renewing our certificate: %w", err)
	}
	if err := a.id.store(renewed); err != nil {
		return err
	}
	a.servers.reconnect()
	_, leaf := a.id.current()
	a.Log.Info("renewed our certificate", "until", leaf.NotAfter)
	return nil
}

// enrol asks until an operator has decided. It shows the code meanwhile.
func (a *Agent) enrol(ctx context.Context, mode api.Mode) error {
	var back backoff
	var shown time.Time
	var last string
	for ctx.Err() == nil {
		asked := a.Now()
		resp, err := a.ask(ctx, mode)
		if ctx.Err() != nil {
			return nil
		}
		status := fmt.Sprintf("no server answers: %v", err)
		if err == nil {
			refused := a.setClock(resp.GetServerTime(), a.Now().Sub(asked))
			status = resp.GetReason()
			if resp.GetStatus() == api.EnrolResponse_STATUS_APPROVED && refused != "" {
				// What would not be good by our clock is left where it is: the next server, or this
				// one when its clock is right, gives another.
				var chain []*x509.Certificate
				if chain, err = parseChain([]byte(resp.GetCertificatePem())); err == nil {
					err = notGood(chain[0], a.Now())
				}
				if err != nil {
					status = fmt.Sprintf("%v; ours stays: %s", err, refused)
				}
			}
			if resp.GetStatus() == api.EnrolResponse_STATUS_APPROVED && err == nil {
				if err := a.id.store([]byte(resp.GetCertificatePem())); err != nil {
					return err
				}
				a.servers.reconnect()
				a.Log.Info("enrolled", "machine", resp.GetMachine())
				a.Host.Print("imagectl: enrolled as " + resp.GetMachine())
				return nil
			}
		}
		if now := a.Now(); status != last || now.Sub(shown) >= announceEvery {
			if status != last {
				a.Log.Info("waiting to be enrolled", "code", a.code(), "status", status)
			}
			last, shown = status, now
			a.announce(status)
		}
		if err != nil {
			a.servers.failed(err)
			a.rest(ctx, &back)
			continue
		}
		back.reset()
		// Bounded both ways: a server's mistake must neither flood it nor put the
		// machine to sleep.
		wait := time.Duration(resp.GetRetryAfterMs()) * time.Millisecond
		_ = pause(ctx, min(max(wait, 500*time.Millisecond), announceEvery))
	}
	return nil
}

// code is what an operator compares. It is of the CA that this machine was given, not of
// one that it was told of: what shall be noticed is another one in node.json.
func (a *Agent) code() string {
	csr, err := a.spki()
	if err != nil {
		return "?"
	}
	return enrol.Code(a.authority.given[0], csr)
}

// announce shows on the console who this is and what to compare.
func (a *Agent) announce(status string) {
	f := a.Host.Facts()
	sum := "?"
	if spki, err := a.spki(); err == nil {
		s := sha256.Sum256(spki)
		sum = hex.EncodeToString(s[:8])
	}
	var nics []string
	for _, i := range f.Interfaces {
		nics = append(nics, i.Name+" "+i.MAC+" "+strings.Join(i.Addresses, " "))
	}
	for _, line := range []string{
		"",
		"imagectl: this machine asks to join the cluster " + a.Config.Cluster,
		"  server  " + a.servers.current().url,
		"  network " + strings.Join(nics, ", "),
		"  machine " + strings.TrimSpace(f.Manufacturer+" "+f.Product) + ", serial " + f.Serial + ", uuid " + f.UUID,
		"  key     " + sum,
		"  CODE    " + a.code(),
		"  status  " + status,
		"Compare the code with \"imagectl machines ls\" before you approve.",
	} {
		a.Host.Print(line)
	}
}

// rest waits longer after each failure, never two machines in step.
func (a *Agent) rest(ctx context.Context, b *backoff) { _ = pause(ctx, b.next(a.Jitter())) }

// backoff doubles from half a second to thirty. The zero value is ready.
type backoff struct{ fails int }

func (b *backoff) reset() { b.fails = 0 }

// next returns the pause after another failure; jitter is from 0 to 1.
func (b *backoff) next(jitter float64) time.Duration {
	d := min(500*time.Millisecond<<min(b.fails, 10), 30*time.Second)
	b.fails++
	return d/2 + time.Duration(jitter*float64(d)/2)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
