package serverapi

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// Bounds on what callers without a certificate can make this server keep.
const (
	// maxUnknown is how many unlisted machines are remembered; the oldest goes.
	maxUnknown = 256
	// newPerSecond and newBurst limit records and keys that are new, but for the first
	// key of each listed machine.
	newPerSecond = 10
	newBurst     = 400
)

// Server answers all calls. It is safe for concurrent use.
type Server struct {
	cfg       Config
	lifetimes pki.Lifetimes
	authority authority
	// trust is the CA imagectl; never nil after New. trusting is held to read it anew.
	trust    atomic.Pointer[trust]
	trusting sync.Mutex
	// etcd is etcd's CA; never nil after New.
	etcd  atomic.Pointer[etcdAuthority]
	tpm   *tpm.Verifier
	start time.Time

	byName map[string]int // index in cfg.Machines
	index  enrol.Index
	board  *board
	fresh  *rate.Limiter // limits what is new at enrolment
	moves  *limits       // limits what reports change
	// renewals limits the certificates of persons.
	renewals *limits
	refusals refusals
	calls    calls
	// poll and headers are maxWait and headerTime but in tests.
	poll, headers time.Duration
	// ejectPause and nodePort are the constants but in tests.
	ejectPause time.Duration
	nodePort   string
	// own is this server's certificate.
	own *ownCertificate

	// certificateEnd is that of this server's own, in Unix time; 0 for none yet.
	certificateEnd atomic.Int64

	// head is the end of the audit log that was signed last; nil for none.
	head atomic.Pointer[audit.Head]
	// copy is the backup for nodes that was signed last; nil for none. copied is, by machine,
	// the name of the one that it was given last.
	copy   atomic.Pointer[files.Copy]
	copied sync.Map
	// lastAdmins is what admins read last: []*api.Admin, which nobody changes.
	lastAdmins atomic.Value
	// signatures are those of the log that are stored, by machine; signing limits them.
	signatures sync.Map
	signing    *limits
	// reads limits how often a machine reads the log or a backup, and rereads how often what it was
	// sent before. followed is, by machine, the number of the last entry that it was sent, and
	// reading has who reads what now.
	reads, rereads    *limits
	followed, reading sync.Map

	// keys are those for Secrets at rest, without what is secret; never nil after New.
	keys atomic.Pointer[[]sealedKey]
	// revoked is what is revoked; never nil after New.
	revoked atomic.Pointer[revokedView]

	// snapshots takes those of the cluster's etcd; nil for none.
	snapshots *etcdsnap.Keeper

	// restored says which backup this state came out of; the zero value for none.
	// sure are the serial numbers of machines' certificates that are on record then.
	restored backup.Mark
	sure     sync.Map

	mu      sync.Mutex
	choices coordinator.Choices
	view    view
	// term is the store's that choices are of, led when it began.
	term string
	led  time.Time
}

// New makes the cluster's keys at the first start and brings the records in line
// with cluster.yaml. A *ClockError is a clock that is before what the audit log has.
func New(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{
		cfg: cfg, lifetimes: cfg.Lifetimes.WithDefaults(), start: cfg.Now(), led: cfg.Now(),
		byName: map[string]int{}, board: newBoard(), fresh: rate.NewLimiter(newPerSecond, newBurst), calls: newCalls(), moves: newLimits(), renewals: newLimits(), signing: newLimits(),
		reads: newLimits(), rereads: newLimitsOf(rereadsEvery, rereadsBurst),
		poll: maxWait, headers: headerTime, ejectPause: ejectPause, nodePort: nodePort,
	}
	s.own = &ownCertificate{server: s}
	if err := s.prepareSnapshots(); err != nil {
		return nil, fmt.Errorf("starting cluster %s: %w", cfg.Cluster, err)
	}
	var listed []enrol.Hardware
	for i, m := range cfg.Machines {
		s.byName[m.Name] = i
		listed = append(listed, enrol.Hardware{Name: m.Name, MACs: m.MACs, UUID: m.UUID, Serial: m.Serial})
	}
	s.index = enrol.NewIndex(listed)
	// Before anything is signed or written.
	if err := s.checkClock(ctx); err != nil {
		return nil, fmt.Errorf("starting cluster %s: %w", cfg.Cluster, err)
	}
	if err := s.loadAuthority(ctx); err != nil {
		return nil, fmt.Errorf("starting cluster %s: %w", cfg.Cluster, err)
	}
	if err := s.settleRestored(ctx); err != nil {
		return nil, fmt.Errorf("starting cluster %s: %w", cfg.Cluster, err)
	}
	var err error
	if s.tpm, err = tpm.NewVerifier(s.signer().Certificate(), cfg.Rand); err != nil {
		return nil, fmt.Errorf("starting cluster %s: %w", cfg.Cluster, err)
	}
	if err := s.loadRevocations(ctx); err != nil {
		return nil, fmt.Errorf("starting cluster %s: %w", cfg.Cluster, err)
	}
	if err := s.list(ctx); err != nil {
		return nil, fmt.Errorf("starting cluster %s: %w", cfg.Cluster, err)
	}
	if err := s.loadChoices(ctx); err != nil {
		return nil, fmt.Errorf("starting cluster %s: %w", cfg.Cluster, err)
	}
	return s, nil
}

// list brings the records in line with cluster.yaml: new machines are approved
// (the reviewed file is the approval of their hardware), vanished ones become
// unknown, and what was unknown and is listed now is forgotten under its old name.
func (s *Server) list(ctx context.Context) error {
	const batch = 30 // records a transaction; each makes two changes, and etcd takes 128
	var todo []string
	for _, m := range s.cfg.Machines {
		if r, ok := s.cfg.Store.Machine(m.Name); !ok || !r.Known {
			todo = append(todo, m.Name)
		}
	}
	for _, r := range s.cfg.Store.Machines() {
		if _, listed := s.byName[r.Name]; listed {
			continue
		}
		name, _ := s.index.Match(hardware(factsOf(r)))
		if r.Known || name != "" {
			todo = append(todo, r.Name)
		}
	}
	for names := range slices.Chunk(todo, batch) {
		err := s.change(ctx, s.self(), func(c *change) error {
			c.tx.Prefetch(names)
			for _, name := range names {
				if err := s.listOne(c, name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) listOne(c *change, name string) error {
	m, ok, err := c.tx.Machine(name)
	if err != nil {
		return err
	}
	_, listed := s.byName[name]
	switch {
	case listed && !ok:
		m = store.Machine{Name: name, State: machine.Approved, Since: c.now, FirstSeen: c.now, Known: true}
		c.log(audit.Entry{Action: "machine-listed", Machine: name, After: string(m.State), Detail: "cluster.yaml lists it"})
		return c.tx.PutMachine(m)
	case listed:
		m.Known = true
		if m.State != machine.Retired {
			if err := c.move(&m, "machine-listed", "cluster.yaml lists it", machine.Listed); err != nil {
				return err
			}
		}
		return c.tx.PutMachine(m)
	case m.Known:
		m.Known = false
		c.log(audit.Entry{Action: "machine-unlisted", Machine: name, Before: string(m.State), After: string(m.State), Detail: "cluster.yaml lists it no more"})
		return c.tx.PutMachine(m)
	default:
		c.log(audit.Entry{Action: "machine-forgotten", Machine: name, Before: string(m.State), Detail: "cluster.yaml lists this hardware under another name now"})
		c.tx.DeleteMachine(name)
		return nil
	}
}

// machineOf returns the plan's view of a machine.
func (s *Server) machineOf(name string) (Machine, bool) {
	i, ok := s.byName[name]
	if !ok {
		return Machine{}, false
	}
	return s.cfg.Machines[i], true
}

// view is the coordinator's input and what firewalls are told, kept while nothing has
// changed: a thousand waiting agents wake at once.
type view struct {
	store, board <-chan struct{} // closed when it is outdated
	until        time.Time       // when somebody's silence may count
	nodes        []coordinator.Node
	// Addresses of the machines that have one; never changed in place.
	controlPlanes, workers []string
}

// silence is how long a machine may say nothing before the coordinator stops
// relying on what it said: four heartbeats.
const silence = 2 * time.Minute

// decide returns the coordinator's input with choices that are stored.
func (s *Server) decide(ctx context.Context) ([]coordinator.Node, coordinator.Choices, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.takeOver(ctx); err != nil {
		return nil, coordinator.Choices{}, fmt.Errorf("reading the choices: %w", err)
	}
	nodes := s.refresh()
	if s.choose(nodes, s.choices).Equal(s.choices) || s.choices.EtcdFirst == "" && s.unsure(s.cfg.Now()) {
		return nodes, s.choices, nil
	}
	var stored coordinator.Choices
	err := s.coordinate(ctx, s.self(), func(c *change) error {
		stored = coordinator.Choices{}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		next := s.choose(nodes, stored)
		if next.Equal(stored) {
			return nil
		}
		c.log(audit.Entry{Action: "cluster-choice", Detail: fmt.Sprintf("from %+v to %+v", stored, next)})
		if err := s.advanceEtcdCA(c, stored.EtcdCA, next.EtcdCA); err != nil {
			return err
		}
		stored = next
		return c.tx.PutValue(valueChoices, next)
	})
	if err != nil {
		return nil, coordinator.Choices{}, fmt.Errorf("storing a choice: %w", err)
	}
	if !stored.EtcdCA.Equal(s.choices.EtcdCA) {
		s.reloadEtcdCA(ctx)
	}
	s.choices = stored
	return nodes, s.choices, nil
}

// refresh brings the view up to date and returns the coordinator's input; mu is held.
func (s *Server) refresh() []coordinator.Node {
	now := s.cfg.Now()
	if !current(s.view.store) || !current(s.view.board) || now.After(s.view.until) {
		s.view = view{store: s.cfg.Store.Changed(), board: s.board.Changed(), until: now.Add(5 * time.Second)}
		for _, m := range s.cfg.Machines {
			n := coordinator.Node{Name: m.Name, ControlPlane: m.ControlPlane, Zone: m.Zone, State: s.cfg.Store.State(m.Name)}
			if r, ok := s.board.get(m.Name); ok && r.last != nil && now.Sub(r.at) < silence {
				n.Seen = r.seen(s.renewal(s.choices), now)
			}
			if n.Seen != nil && !n.Seen.Joined {
				record, _ := s.cfg.Store.Machine(m.Name)
				n.Former = !record.JoinedAt.IsZero()
			}
			n.Lost = s.lostBoot(m.Name)
			n.Gone = n.Seen == nil && now.Sub(s.led) >= silence
			s.view.nodes = append(s.view.nodes, n)
			a := s.addressOf(m.Name)
			switch {
			case a == "" || n.State == machine.Retired:
			case m.ControlPlane:
				s.view.controlPlanes = append(s.view.controlPlanes, a)
			default:
				s.view.workers = append(s.view.workers, a)
			}
		}
		s.view.nodes = append(s.view.nodes, s.unlisted()...)
	}
	return s.retiredVoters(s.view.nodes)
}

// retiredVoters adds the voters that are retired and that cluster.yaml does not list
// any more: their members have to go. So do those that were to start etcd or Kubernetes: others have
// to be chosen.
func (s *Server) retiredVoters(nodes []coordinator.Node) []coordinator.Node {
	names := s.choices.EtcdVoters
	for _, name := range []string{s.choices.EtcdFirst, s.choices.KubernetesFirst} {
		if name != "" && !slices.Contains(names, name) {
			names = append(slices.Clone(names), name)
		}
	}
	for _, name := range names {
		if _, listed := s.byName[name]; listed || s.cfg.Store.State(name) != machine.Retired {
			continue
		}
		nodes = slices.DeleteFunc(slices.Clone(nodes), func(n coordinator.Node) bool { return n.Name == name })
		nodes = append(nodes, coordinator.Node{Name: name, ControlPlane: true, State: machine.Retired, Gone: true, Lost: s.lostBoot(name)})
	}
	return nodes
}

// current tells whether a channel is set and still open.
func current(c <-chan struct{}) bool {
	if c == nil {
		return false
	}
	select {
	case <-c:
		return false
	default:
		return true
	}
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// hardware is what facts say a machine can be recognised by. A stranger names
// itself by them, so what has not the right form is as good as absent.
func hardware(f *api.Facts) enrol.Hardware {
	h := enrol.Hardware{Serial: f.GetSerial()}
	if u := strings.ToLower(f.GetUuid()); uuidForm.MatchString(u) {
		h.UUID = u
	}
	for _, i := range f.GetInterfaces() {
		if mac, err := net.ParseMAC(i.GetMac()); err == nil && len(mac) == 6 {
			h.MACs = append(h.MACs, mac.String())
		}
	}
	return h
}
