package serverapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// rackOf are machines that nothing of etcd or Kubernetes hangs on.
func rackOf(n int) []Machine {
	var all []Machine
	for i := range n {
		all = append(all, Machine{Name: fmt.Sprintf("w%d", i), Role: "worker", MACs: []string{fmt.Sprintf("52:54:00:00:01:%02x", i)}, Disk: &api.DiskRule{Path: "/dev/vda"},
			Image: Image{URL: "http://127.0.0.1:8080/files/aa/w.raw.zst", SHA256: strings.Repeat("a", 64), Size: 1 << 20, RawSize: 8 << 20, RawSHA256: strings.Repeat("b", 64)}})
	}
	return all
}

// killedRack is how many machines TestNoMachineIsInAStateThatItWasNotIn has.
const killedRack = 8

// serveForever is the child of the test below: a server with all of its handlers on the
// store that imagectl serve has, which waits for the disk.
func serveForever(dir, address string) error {
	st, err := store.Open(context.Background(), store.Config{Dir: dir, Cluster: "demo", Log: os.Stderr})
	if err != nil {
		return err
	}
	cfg := config(rackOf(killedRack)...)
	cfg.Store = st
	s, err := New(context.Background(), cfg)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	os.Stdout.WriteString("go\n")
	return s.Serve(context.Background(), l)
}

// Machines are armed, disarmed, installed, started and fail while the server is killed again
// and again, also while it starts. Whenever that is: every machine is in the state that was
// acknowledged last or in the one that was asked for then, the log has each change that a
// client knows of once and no other one, and no arming is one of before.
//
// A kill takes nothing from the kernel that was written. That it is on the disk before it is
// acknowledged is etcd's part: it opens its files itself, so the leases' crashing disk
// (pxe/journal/journaltest) does not go below it.
func TestNoMachineIsInAStateThatItWasNotIn(t *testing.T) {
	t.Parallel()
	const lives = 40
	h := newKilled(t)
	for life := range lives {
		h.life(life)
		if t.Failed() {
			t.Fatalf("in life %d, seed %d", life, h.seed)
		}
	}
	h.compare()
	if h.cut == 0 || h.acknowledged < lives {
		t.Errorf("%d changes were acknowledged and %d requests cut off: this test shows nothing", h.acknowledged, h.cut)
	}
	t.Logf("killed %d times, %d of them in a start; %d requests acknowledged; of %d that were cut off %d had been done", lives, h.early, h.acknowledged, h.cut, h.done)
}

// killed is what clients know of a server that is killed.
type killed struct {
	*rig
	seed     uint64
	rand     *rand.Rand
	ada      tls.Certificate
	machines []*life
	// armings are all that any machine was told.
	armings map[string]string
	mu      sync.Mutex

	acknowledged, cut, done, early int
}

// life is what is known of one machine.
type life struct {
	*fake
	name string
	rand *rand.Rand
	// state is what was acknowledged last, and moves how it came there.
	state machine.State
	moves []machine.State
	// asked is the state after the request that is on its way; empty for none.
	asked machine.State
	// arming is the one that it was told since it was armed last; empty for none.
	arming string
}

// step is a request that may change a machine's state.
type step struct {
	event machine.Event
	// ask returns the arming that the answer names, if any. An answer that does not fit the
	// state that the event leads to is an error.
	ask func(ctx context.Context, c clients) (arming string, err error)
}

// clients are connections to one life of the server.
type clients struct {
	operator apiconnect.OperatorServiceClient
	agent    apiconnect.AgentServiceClient
}

func newKilled(t *testing.T) *killed {
	t.Helper()
	seed := rand.Uint64()
	h := &killed{rig: start(t, config(rackOf(killedRack)...)), seed: seed, rand: rand.New(rand.NewPCG(seed, 0)), armings: map[string]string{}}
	certificate, key, _, err := h.Operator(t.Context(), "ada", pki.RoleOperator)
	if err != nil {
		t.Fatal(err)
	}
	if h.ada, err = tls.X509KeyPair(certificate, key); err != nil {
		t.Fatal(err)
	}
	for i, m := range rackOf(killedRack) {
		h.machines = append(h.machines, &life{fake: h.approvedMachine(m.Name, m.MACs[0]), name: m.Name,
			rand: rand.New(rand.NewPCG(seed, uint64(i+1))), state: machine.Approved})
	}
	h.stop()
	return h
}

// life starts a server, compares, asks for changes and kills the server after so many were
// acknowledged. A few servers are killed while they start.
func (h *killed) life(n int) {
	t := h.t
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "SERVE_FOREVER="+h.dir, "SERVE_AT="+strings.TrimPrefix(h.url, "https://"))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	defer kill()
	if n%4 == 3 {
		time.Sleep(time.Duration(h.rand.IntN(500)) * time.Millisecond) // any moment will do
		h.early++
		return
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the server does not start: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // only a server that hangs takes that long
	defer cancel()
	all := make([]clients, len(h.machines))
	for i, m := range h.machines {
		all[i] = clients{apiconnect.NewOperatorServiceClient(h.client(&h.ada), h.url), apiconnect.NewAgentServiceClient(h.client(m.cert), h.url)}
	}
	h.look(ctx, all[0])

	var dead atomic.Bool
	acknowledged, over := make(chan struct{}), make(chan struct{})
	var asking sync.WaitGroup
	for i, m := range h.machines {
		asking.Go(func() {
			for !dead.Load() {
				err := h.ask(ctx, m, all[i])
				if err != nil && !dead.Load() {
					t.Errorf("%s, %s: %v", m.name, m.state, err)
				}
				if err != nil {
					return
				}
				select {
				case acknowledged <- struct{}{}:
				case <-over:
				}
			}
		})
	}
	gone := make(chan struct{})
	go func() { asking.Wait(); close(gone) }()
	for range h.rand.IntN(50) {
		select {
		case <-acknowledged:
		case <-gone: // which is an error already
		}
	}
	time.Sleep(time.Duration(h.rand.IntN(5000)) * time.Microsecond) // not only when a commit has just ended
	dead.Store(true)
	kill()
	close(over)
	<-gone
}

// ask makes one request and notes what it is sure of.
func (h *killed) ask(ctx context.Context, m *life, c clients) error {
	s := m.next()
	to, err := machine.Next(m.state, s.event)
	if err != nil {
		return err
	}
	m.asked = to
	arming, err := s.ask(ctx, c)
	if err != nil {
		return fmt.Errorf("%s: %w", s.event, err)
	}
	m.asked = ""
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acknowledged++
	m.comesTo(to)
	if arming == "" {
		return nil
	}
	// One order for each arming, whoever was killed meanwhile.
	if m.arming != "" && arming != m.arming {
		return fmt.Errorf("it is told arming %s, and before %s, and was armed once", arming, m.arming)
	}
	if owner, old := h.armings[arming]; old && m.arming == "" {
		return fmt.Errorf("it is told arming %s, which %s had before", arming, owner)
	}
	m.arming, h.armings[arming] = arming, m.name
	return nil
}

func (m *life) comesTo(to machine.State) {
	if to == m.state {
		return
	}
	m.state, m.moves = to, append(m.moves, to)
	if to == machine.Armed {
		m.arming = "" // a new one
	}
}

// look compares what a server that was started again says with what was acknowledged.
func (h *killed) look(ctx context.Context, c clients) {
	h.t.Helper()
	resp, err := c.operator.ListMachines(ctx, connect.NewRequest(&api.ListMachinesRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	is := map[string]machine.State{}
	for _, v := range resp.Msg.GetMachines() {
		is[v.GetName()] = machine.State(v.GetState())
	}
	for _, m := range h.machines {
		got := is[m.name]
		switch {
		case m.asked == "" && got != m.state:
			h.t.Errorf("%s is %q after a kill; it was %s, and nothing was on its way", m.name, got, m.state)
		case got != m.state && got != m.asked:
			h.t.Errorf("%s is %q after a kill; it was %s, and was to become %s", m.name, got, m.state, m.asked)
		case m.asked != "" && m.asked != m.state:
			h.cut++
			if got == m.asked {
				h.done++
			}
		}
		m.asked = ""
		m.comesTo(got)
	}
}

// next is something that may happen to the machine now, what is nothing new included.
func (m *life) next() step {
	any := func(steps ...step) step { return steps[m.rand.IntN(len(steps))] }
	switch m.state {
	case machine.Armed:
		return any(m.begins(), m.begins(), m.begins(), m.disarm(), m.arm())
	case machine.Installing:
		return any(m.ends(), m.ends(), m.ends(), m.begins(), m.fails(), m.disarm(), m.runs())
	default:
		return any(m.arm(), m.arm(), m.arm(), m.disarm(), m.runs())
	}
}

func (m *life) arm() step {
	return step{machine.ArmReinstall, func(ctx context.Context, c clients) (string, error) {
		resp, err := c.operator.ArmMachine(ctx, connect.NewRequest(&api.ArmMachineRequest{Selection: &api.Selection{Names: []string{m.name}}, Reinstall: true}))
		if err != nil {
			return "", err
		}
		return "", m.fits(resp.Msg.GetOutcomes())
	}}
}

func (m *life) disarm() step {
	return step{machine.Disarm, func(ctx context.Context, c clients) (string, error) {
		resp, err := c.operator.DisarmMachine(ctx, connect.NewRequest(&api.DisarmMachineRequest{Selection: &api.Selection{Names: []string{m.name}}}))
		if err != nil {
			return "", err
		}
		return "", m.fits(resp.Msg.GetOutcomes())
	}}
}

func (m *life) fits(outcomes []*api.Outcome) error {
	if len(outcomes) != 1 || !outcomes[0].GetOk() || machine.State(outcomes[0].GetState()) != m.asked {
		return fmt.Errorf("answered by %v, want %s", outcomes, m.asked)
	}
	return nil
}

func (m *life) begins() step {
	return m.reports(machine.InstallBegun, installer(), func(r *api.SyncResponse) bool { return r.GetInstall().GetArmingId() != "" })
}

func (m *life) ends() step {
	done := installer()
	done.Installed = true
	return m.reports(machine.InstallDone, done, func(r *api.SyncResponse) bool { return r.GetReboot() != nil })
}

func (m *life) fails() step {
	failed := installer()
	failed.Failure = "its disk is full"
	return m.reports(machine.Fail, failed, func(r *api.SyncResponse) bool { return r.GetWait().GetReasonCode() == "failed" })
}

func (m *life) runs() step {
	return m.reports(machine.NodeSeen, &api.SyncRequest{Mode: api.Mode_MODE_NODE}, func(r *api.SyncResponse) bool { return r.GetRun() != nil })
}

func (m *life) reports(event machine.Event, req *api.SyncRequest, fits func(*api.SyncResponse) bool) step {
	return step{event, func(ctx context.Context, c clients) (string, error) {
		resp, err := c.agent.Sync(ctx, connect.NewRequest(req))
		if err != nil {
			return "", err
		}
		if !fits(resp.Msg) {
			return "", fmt.Errorf("answered by %v", resp.Msg)
		}
		return resp.Msg.GetInstall().GetArmingId(), nil
	}}
}

// causes are the events that an action of the log may be, where no report has several.
func causes(action string) []machine.Event {
	return map[string][]machine.Event{
		"machine-armed":    {machine.ArmReinstall},
		"machine-disarmed": {machine.Disarm},
		"install-begun":    {machine.InstallBegun},
		"machine-reported": {machine.InstallDone, machine.NodeSeen, machine.Fail},
	}[action]
}

// compare opens the store itself: its log is what clients know, entry by entry, each a
// permitted transition, and the records are where it ends.
func (h *killed) compare() {
	t := h.t
	t.Helper()
	h.up(config(rackOf(killedRack)...))
	if _, err := h.VerifyAudit(t.Context()); err != nil {
		t.Fatal(err)
	}
	logged, taken := map[string][]machine.State{}, map[string]bool{}
	state := map[string]machine.State{}
	var at audit.Tip
	for line, err := range h.store.AuditLines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var e audit.Entry
		if e, at, err = audit.Open(at, line); err != nil {
			t.Fatal(err)
		}
		before, after := machine.State(e.Before), machine.State(e.After)
		switch {
		case e.Action == "arming-taken":
			if taken[e.Detail] {
				t.Errorf("entry %d: %s for the second time", at.Seq, e.Detail)
			}
			taken[e.Detail] = true
		case e.Action == "machine-listed":
			state[e.Machine] = after
		case before != after:
			permitted := slices.ContainsFunc(causes(e.Action), func(event machine.Event) bool {
				to, err := machine.Next(before, event)
				return err == nil && to == after
			})
			if !permitted || before != state[e.Machine] {
				t.Errorf("entry %d: %s takes %s from %s to %s; it was %s", at.Seq, e.Action, e.Machine, before, after, state[e.Machine])
			}
			state[e.Machine], logged[e.Machine] = after, append(logged[e.Machine], after)
		}
	}
	for _, m := range h.machines {
		record, _ := h.store.Machine(m.name)
		if m.asked != "" && record.State == m.asked {
			m.comesTo(m.asked) // by the last request
		}
		if record.State != m.state || state[m.name] != m.state || !slices.Equal(logged[m.name], m.moves) {
			t.Errorf("%s: on record it is %s, by the log %s, was %s; it went\n%v by the log, and\n%v", m.name, record.State, state[m.name], m.state, logged[m.name], m.moves)
		}
		if armed := m.state == machine.Armed || m.state == machine.Installing; armed != (record.Arming != nil) {
			t.Errorf("%s is %s with arming %v", m.name, m.state, record.Arming)
		}
	}
}
