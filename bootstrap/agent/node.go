package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/balancer"
	"github.com/imagectl/imagectl/bootstrap/inspect"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/vip"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// RunPath holds the last Run directive, from which a node comes back without a
// server.
const RunPath = StateDir + "/run.json"

const (
	// resettle is how often a node that is as it should be looks again.
	resettle = 20 * time.Second
	// firstLook is how long a new process may look before it reports.
	firstLook = 15 * time.Second
	// retry is how soon a node that is not there yet looks again.
	retry = 2 * time.Second
)

// node is the state of the mode nodeconf.Node, between its three tasks: talking
// to the server, bringing the machine to where the directive says, and serving.
type node struct {
	*Agent
	balancer *balancer.Balancer
	// system is what the node API reads.
	system *inspect.System
	// changed wakes talk, wake wakes settle, backup keepBackups, shown
	// keepWitness.
	changed, wake, backup, shown chan struct{}
	// orders are the server's.
	orders chan *api.Order

	// looked is when all steps of lookedRun were last looked at; only settle uses them.
	looked    time.Time
	lookedRun *api.Run
	// renewalsAfter holds back the next attempt; only settle uses it.
	renewalsAfter time.Time
	// initialCluster is etcd's, from the last look at its members; only settle uses
	// it.
	initialCluster string

	// formerGone are the former nodes that Kubernetes does not know any more; only settle
	// uses it.
	formerGone []*api.FormerNode
	// etcdCADone is the turn of etcd's CA that this node is known to be through with.
	etcdCADone atomic.Uint64
	// imagesSeen is when containerd had all images; only settle uses it.
	imagesSeen time.Time

	// keeping is about this node's etcd member.
	keeping keeping
	// resetting: this system ends, and nothing of etcd and Kubernetes is made any more.
	resetting atomic.Bool
	// vip keeps the API's address; nil where there is no network.
	vip *vip.Keeper
	// recording is held by Record.
	recording sync.Mutex
	// linking is held by whoever changes files of links.
	linking sync.Mutex

	mu sync.Mutex
	// revoked is what the callers' CA has revoked, out of run; revokedNews is closed
	// when it changes.
	revoked     pki.RevocationList
	revokedNews chan struct{}
	// kubelet is kubelet's version, which does not change while it is mounted.
	kubelet string
	run     *api.Run
	report  report
	// heads are the ends of the server's audit log; only handle changes them.
	heads  audit.Memory
	copies copies
	// witness is what this node said of the log last, signed; only keepWitness changes it.
	witness signedWitness
	// drains are what this control plane last said of each drain that it does.
	drains []*api.Drain
	// ordered is what became of the last order; nil for none.
	ordered *api.OrderReport
	// sendLists: the server wants to see the revocation lists.
	sendLists bool
}

func newNode(a *Agent) *node {
	n := &node{Agent: a, balancer: &balancer.Balancer{Log: a.Log}, system: inspect.New(a.Host.Root, a.Now), changed: make(chan struct{}, 1), wake: make(chan struct{}, 1), backup: make(chan struct{}, 1), shown: make(chan struct{}, 1), revokedNews: make(chan struct{}), orders: make(chan *api.Order, 1)}
	n.vip = n.vipKeeper()
	return n
}

// node is the mode of an installed machine.
func (a *Agent) node(ctx context.Context) error {
	n := newNode(a)
	rebooting, err := n.finishReset(ctx)
	if err != nil {
		return err
	}
	if rebooting {
		<-ctx.Done()
		return nil
	}
	if err := errors.Join(n.remember(), n.loadHeads(), n.loadBackups(), n.loadWitness(), n.loadOrder()); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if a.Balancer != nil {
		g.Go(func() error { return n.balancer.Serve(ctx, a.Balancer) })
	}
	if a.API != nil {
		g.Go(func() error { return nodeapi.Serve(ctx, a.API, n.apiTLS, n) })
	}
	looked := make(chan struct{})
	g.Go(func() error {
		n.settle(ctx, looked)
		return nil
	})
	g.Go(func() error {
		n.look(ctx, looked)
		return a.talk(ctx, api.Mode_MODE_NODE, n.changed, n.news, n.handle)
	})
	g.Go(func() error {
		n.keepBackups(ctx)
		return nil
	})
	g.Go(func() error {
		n.keepOrders(ctx)
		return nil
	})
	g.Go(func() error {
		n.keepLinks(ctx)
		return nil
	})
	g.Go(func() error {
		n.keepWitness(ctx)
		return nil
	})
	if n.vip != nil {
		g.Go(func() error {
			n.vip.Run(ctx)
			return nil
		})
	}
	a.ready()
	return g.Wait()
}

// remember loads the last directive. One that cannot be read is forgotten: the
// server has another.
func (n *node) remember() error {
	b, err := n.Host.ReadFile(RunPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the last directive: %w", err)
	}
	run := &api.Run{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, run); err != nil {
		n.Log.Error("forgetting the last directive, which cannot be read", "file", RunPath, "err", err)
		return nil
	}
	n.use(run)
	return nil
}

func (n *node) news() report {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.report
	r.held = heldLists(n.run.GetRevocations(), n.sendLists)
	r.witness = n.witness.wire()
	r.order, r.obeys = n.ordered, true
	r.backups, r.backupProblem = n.copies.names(), n.copies.problem
	if n.vip != nil {
		for _, a := range n.vip.Holding() {
			r.vip = append(r.vip, a.String())
		}
	}
	return r
}

func (n *node) directive() *api.Run {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.run
}

// handle keeps a directive before it is acted on.
func (n *node) handle(_ context.Context, resp *api.SyncResponse) {
	n.mu.Lock()
	n.sendLists = resp.GetSendLists()
	n.mu.Unlock()
	n.see(resp.GetAuditHead())
	n.order(resp.GetOrder())
	n.wantBackup(resp.GetBackup())
	switch d := resp.GetDirective().(type) {
	case *api.SyncResponse_Run:
		d.Run.Revocations = n.newestLists(n.directive().GetRevocations(), d.Run.GetRevocations())
		if proto.Equal(d.Run, n.directive()) {
			n.use(d.Run) // its list may be by a CA that the node has only just been told of
			return
		}
		b, err := protojson.MarshalOptions{Multiline: true}.Marshal(d.Run)
		if err == nil {
			err = n.Host.WriteFile(RunPath, b, 0o600)
		}
		if err != nil {
			n.Log.Error("keeping the directive failed; acting on it all the same", "err", err)
		}
		n.use(d.Run)
		poke(n.shown) // it may be a control plane now
		n.Log.Info("new directive", "revision", resp.GetRevision(), "etcd", d.Run.GetEtcd().GetAction(), "kubernetes", d.Run.GetKubernetes().GetAction())
		poke(n.wake)
	case *api.SyncResponse_Wait:
		n.Log.Info("waiting", "code", d.Wait.GetReasonCode(), "because", d.Wait.GetReason())
	default:
		// Install and Reboot are for installers: nothing on the wire makes a running
		// node write its disk.
		n.Log.Warn("the server sent a directive that is not for an installed node", "directive", fmt.Sprintf("%T", d))
	}
}

// look waits until there is something true to report. A new process that knows
// its directive looks first: an empty report would say that etcd is down and that
// the node is not Ready.
func (n *node) look(ctx context.Context, looked <-chan struct{}) {
	run := n.directive()
	if run == nil {
		// Whether it has joined it knows without one: who was a node and does not say so
		// was installed anew, and its Node object is removed.
		if joined, err := n.Host.Exists(joinedPath); err == nil && joined {
			n.publish(report{kubernetes: &api.KubernetesObserved{Joined: true}})
		}
		return
	}
	t := time.NewTimer(firstLook)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-looked:
	case <-t.C:
		n.publish(n.observe(ctx, run, outcome{steps: n.news().steps}))
	}
}

// settle brings the machine to where the directive says, again and again. looked
// is closed after the first time.
func (n *node) settle(ctx context.Context, looked chan<- struct{}) {
	first := true
	for ctx.Err() == nil {
		wait := resettle
		if run := n.directive(); run != nil {
			out := n.work(ctx, run)
			n.publish(n.observe(ctx, run, out))
			if len(out.changed) > 0 {
				n.Log.Info("changed", "steps", out.changed)
			}
			if !out.done {
				wait = retry
			}
		}
		if first {
			first = false
			close(looked)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-n.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// work goes once through what the directive says, or on from where it waits.
func (n *node) work(ctx context.Context, run *api.Run) outcome {
	if n.resetting.Load() {
		// What is forgotten is not made again.
		return runSteps(ctx, n.Log, []Step{turn("reset", "it forgets etcd and Kubernetes, and reboots")}, nil, false, n.publishSteps)
	}
	// Each look starts programs (systemctl, nft), which on a machine that is busy starting
	// everything cost more than what it waits for.
	lately := run == n.lookedRun && n.Now().Sub(n.looked).Abs() < resettle
	if !lately {
		n.looked, n.lookedRun = n.Now(), run
	}
	out := runSteps(ctx, n.Log, n.steps(run), n.news().steps, lately, n.publishSteps)
	if out.done {
		return out
	}
	for _, s := range n.last(run) {
		if s.Name == out.stopped() {
			continue // it was tried
		}
		more := runSteps(ctx, n.Log, []Step{s}, nil, false, func([]*api.StepStatus) {})
		out.changed = append(out.changed, more.changed...)
	}
	return out
}

func (n *node) publishSteps(s []*api.StepStatus) {
	n.mu.Lock()
	r := n.report
	n.mu.Unlock()
	r.steps = s
	n.publish(r)
}

// publish replaces the report and wakes talk if the server does not know it yet.
func (n *node) publish(r report) {
	n.mu.Lock()
	same := slices.EqualFunc(n.report.steps, r.steps, func(a, b *api.StepStatus) bool { return proto.Equal(a, b) }) &&
		proto.Equal(n.report.etcd, r.etcd) && proto.Equal(n.report.kubernetes, r.kubernetes)
	n.report = r
	n.mu.Unlock()
	if !same {
		poke(n.changed)
	}
}

// apiTLS is what the node API shows and demands, as of now.
func (n *node) apiTLS() (nodeapi.Trust, error) {
	cert, _ := n.id.current()
	n.mu.Lock()
	run, revoked, news := n.run, n.revoked, n.revokedNews
	n.mu.Unlock()
	if cert == nil || run.GetClientCaPem() == "" {
		return nodeapi.Trust{}, errors.New("this node is not enrolled yet")
	}
	var admins []nodeapi.Admin
	for _, a := range run.GetAdmins() {
		admins = append(admins, nodeapi.Admin{Name: a.GetName(), Key: a.GetKey()})
	}
	return nodeapi.Trust{Certificate: cert, ClientCA: []byte(run.GetClientCaPem()), Cluster: n.Config.Cluster, Now: n.Now, Revoked: revoked, Changed: news, Admins: admins}, nil
}
