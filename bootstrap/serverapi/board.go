package serverapi

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
)

// board is what machines last said, in memory: losing it costs one heartbeat.
type board struct {
	mu      sync.Mutex
	reports map[string]report
	steps   map[string]string // of BMCs, by machine
	// asked are the newest facts of machines whose key waits for an operator.
	asked   map[string]*api.Facts
	changed chan struct{} // closed at the next change that matters
}

// report is one machine's last word. It is immutable.
type report struct {
	at   time.Time
	last *api.SyncRequest
	// issuer is the pki.KeyID of the CA of the certificate that it called with.
	issuer string
	// done and total are an installation's progress.
	done, total uint64
}

func newBoard() *board {
	return &board{reports: map[string]report{}, steps: map[string]string{}, asked: map[string]*api.Facts{}, changed: make(chan struct{})}
}

// wake wakes those who wait, for news that is kept elsewhere.
func (b *board) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
}

// forget drops what a machine said.
func (b *board) forget(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.reports, name)
	delete(b.asked, name)
	close(b.changed)
	b.changed = make(chan struct{})
}

// put keeps a report. Only news wakes those who wait; that somebody is back is some.
func (b *board) put(name, issuer string, at time.Time, r *api.SyncRequest) {
	// What is about the call itself is no news.
	r = proto.CloneOf(r)
	r.KnownRevision, r.WaitMs = 0, 0
	b.mu.Lock()
	defer b.mu.Unlock()
	old, ok := b.reports[name]
	if !ok || at.Sub(old.at) >= silence || old.issuer != issuer || !proto.Equal(old.last, r) {
		close(b.changed)
		b.changed = make(chan struct{})
	}
	old.at, old.last, old.issuer = at, r, issuer
	b.reports[name] = old
}

// ask keeps what a machine says about itself while it waits: it goes on to learn, of
// its neighbours for instance, after its record was made. Nobody is woken for it: who
// is not approved could do so without end.
func (b *board) ask(name string, f *api.Facts) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked[name] = f
}

// factsOf is what a machine that waits said last, nil for nothing.
func (b *board) factsOf(name string) *api.Facts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[name]
}

// progress keeps how far an installation is; nobody waits for it.
func (b *board) progress(name string, at time.Time, done, total uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.reports[name]
	r.at, r.done, r.total = at, done, total
	b.reports[name] = r
}

// tell keeps what a machine's BMC is asked to do; empty for nothing.
func (b *board) tell(name, step string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.steps[name] = step; step == "" {
		delete(b.steps, name)
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// told returns what a machine's BMC is asked to do.
func (b *board) told(name string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.steps[name]
}

func (b *board) get(name string) (report, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.reports[name]
	return r, ok
}

// Changed returns a channel that is closed at the next news.
func (b *board) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// seen is the part of a report that decisions look at, at a time.
func (r report) seen(renewal renewal, now time.Time) *coordinator.Seen {
	e, k := r.last.GetEtcd(), r.last.GetKubernetes()
	var members []string
	for _, m := range e.GetMembers() {
		members = append(members, m.GetName())
	}
	var gone []coordinator.Former
	for _, f := range k.GetFormerGone() {
		gone = append(gone, coordinator.Former{Name: f.GetName(), BootID: f.GetBootId(), Was: f.GetWasBootId()})
	}
	return &coordinator.Seen{
		BootID: r.last.GetBootId(), RemovesFormer: k.GetRemovesFormer(), Drains: k.GetDrainsNodes(), FormerGone: gone,
		EtcdMembers:    members,
		EtcdAlone:      e.GetAlone(),
		EtcdSnapshot:   e.GetSnapshot(),
		EtcdStopped:    e.GetStopped(),
		Etcd:           keepingOf(e),
		Installer:      r.last.GetMode() == api.Mode_MODE_INSTALLER,
		EtcdHealthy:    e.GetHealthy() && !e.GetLearner(),
		EtcdMember:     e.GetMemberId() != "",
		CATurn:         e.GetCaTurn(),
		CADone:         e.GetCaDone(),
		CAStale:        e.GetCaStale(),
		TimingStale:    e.GetTimingStale(),
		EtcdEmpty:      e.GetEmpty(),
		APIServerReady: k.GetApiserverReady(),
		Joined:         k.GetJoined(),
		NodeReady:      k.GetNodeReady(),
		AddonsApplied:  k.GetAddonsApplied(),
		Certificates:   kubeadmCertificates(k, renewal, now),

		Outdated: k.GetApiServerOutdated(), EncryptionLoaded: k.GetEncryptionLoaded(), EncryptionRewritten: k.GetEncryptionRewritten(),
	}
}
