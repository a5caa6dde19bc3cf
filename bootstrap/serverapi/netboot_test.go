package serverapi

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// fakeBMCs does what the test says: every start from the network is handed to it.
type fakeBMCs struct {
	boots chan bootOrder

	mu    sync.Mutex
	asked []string
	fail  error
	// media says that it starts machines from virtual media; the first ejection fails.
	media     bool
	ejections int
}

type bootOrder struct {
	machine string
	still   func() error
	tell    func(string)
	end     chan<- error
}

// startWithBMCs starts a server of cp1 and w1, of which w1 has a BMC.
func startWithBMCs(t *testing.T) (*rig, *fakeBMCs) {
	t.Helper()
	cfg := config(cp1(), w1())
	bmcs := &fakeBMCs{boots: make(chan bootOrder)}
	cfg.BMC = bmcs
	return start(t, cfg), bmcs
}

func (f *fakeBMCs) Names(machine string) (string, bool) { return "redfish 10.9.0.1", machine == "w1" }

func (f *fakeBMCs) Power(_ context.Context, machine string, a api.PowerMachineRequest_Action) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, machine+" "+a.String())
	return "on", f.fail
}

func (f *fakeBMCs) Media(string) bool { return f.media }

func (f *fakeBMCs) Eject(context.Context, string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ejections++
	if f.ejections == 1 {
		return errors.New("it is busy")
	}
	return nil
}

func (f *fakeBMCs) Boot(ctx context.Context, machine string, still func() error, tell func(string)) error {
	end := make(chan error, 1)
	select {
	case f.boots <- bootOrder{machine, still, tell, end}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// netboots runs the rig's netboot task until the function is called or the test ends.
func (r *rig) netboots() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Netboot(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("netboot task: %v", err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) provision(name string, reinstall, again bool) *api.Outcome {
	r.t.Helper()
	resp, err := r.operator(pki.RoleOperator).ArmMachine(r.t.Context(), connect.NewRequest(&api.ArmMachineRequest{
		Selection: &api.Selection{Names: []string{name}}, Reinstall: reinstall, Netboot: true, Again: again,
	}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()[0]
}

// until waits for a record.
func (r *rig) until(name string, as func(store.Machine) bool) store.Machine {
	r.t.Helper()
	for {
		changed := r.store.Changed()
		if m, _ := r.store.Machine(name); as(m) {
			return m
		}
		select {
		case <-changed:
		case <-r.t.Context().Done():
			r.t.Fatal("the test ended first")
		}
	}
}

func netbooted(m store.Machine) bool { return m.Arming != nil && !m.Arming.NetbootDone.IsZero() }

func TestProvisioningStartsAMachineOnceForAnArming(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	r.netboots()
	if o := r.provision("w1", false, false); !o.GetOk() || o.GetState() != "armed" || o.GetMessage() != "its BMC starts it from the network" {
		t.Fatalf("got %v", o)
	}
	order := <-bmcs.boots
	order.tell("switching it on")
	if got := r.shown("w1").GetReason(); got != "redfish 10.9.0.1: switching it on" {
		t.Errorf("got reason %q", got)
	}
	// While it is under way, asking again changes nothing.
	if o := r.provision("w1", false, true); !o.GetOk() {
		t.Errorf("got %v", o)
	}
	if err := order.still(); err != nil {
		t.Error(err)
	}
	order.end <- nil
	first := r.until("w1", netbooted)
	if got := r.shown("w1").GetReason(); !strings.HasPrefix(got, "redfish 10.9.0.1 started it from the network at ") {
		t.Errorf("got reason %q", got)
	}
	// Nor does it afterwards, without the word; with it the same arming is used.
	if o := r.provision("w1", false, false); !o.GetOk() {
		t.Errorf("got %v", o)
	}
	if m, _ := r.store.Machine("w1"); !netbooted(m) {
		t.Error("it is started twice for one arming")
	}
	if o := r.provision("w1", false, true); !o.GetOk() {
		t.Errorf("got %v", o)
	}
	(<-bmcs.boots).end <- nil
	if again := r.until("w1", netbooted); again.Arming.ID != first.Arming.ID {
		t.Error("it was armed anew")
	}
}

func TestProvisioningRefusesWhatArmingRefuses(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	r.netboots()
	if o := r.provision("cp1", false, false); o.GetReasonCode() != "no-bmc" || o.GetState() != "approved" {
		t.Errorf("a machine without a BMC: %v", o)
	}
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.arm("w1", false)
	if d := f.sync(installer()); d.GetInstall() == nil {
		t.Fatalf("want an Install directive, got %v", d)
	}
	if o := r.provision("w1", false, false); o.GetReasonCode() != "not-in-this-state" {
		t.Errorf("a machine that writes its disk: %v", o)
	}
	f.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE})
	if o := r.provision("w1", false, false); o.GetReasonCode() != "needs-reinstall" && o.GetReasonCode() != "not-in-this-state" {
		t.Errorf("an installed machine: %v", o)
	}
	select {
	case order := <-bmcs.boots:
		t.Errorf("%s was started though it was refused", order.machine)
	default:
	}
	// With the word, it is.
	if o := r.provision("w1", true, false); !o.GetOk() {
		t.Fatalf("got %v", o)
	}
	(<-bmcs.boots).end <- nil
	r.until("w1", netbooted)
}

// An installation that provisioning began is waited for, not begun again.
func TestProvisioningAMachineThatItInstallsIsNoError(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	r.netboots()
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.provision("w1", false, false)
	(<-bmcs.boots).end <- nil
	r.until("w1", netbooted)
	if d := f.sync(installer()); d.GetInstall() == nil {
		t.Fatalf("want an Install directive, got %v", d)
	}
	if o := r.provision("w1", false, true); !o.GetOk() || o.GetState() != "installing" {
		t.Errorf("got %v", o)
	}
}

func TestMachineWhoseBMCFailsIsDisarmed(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	r.netboots()
	r.provision("w1", false, false)
	(<-bmcs.boots).end <- errors.New("asking redfish 10.9.0.1: login: no answer in time")
	m := r.until("w1", func(m store.Machine) bool { return m.State != machine.Armed })
	if want := "disarmed again: its BMC did not start it: asking redfish 10.9.0.1: login: no answer in time"; m.State != machine.Approved || m.Arming != nil || m.Reason != want {
		t.Errorf("it is %s, %v, %q", m.State, m.Arming, m.Reason)
	}
	// It can be tried again.
	r.provision("w1", false, false)
	(<-bmcs.boots).end <- nil
	r.until("w1", netbooted)
}

func TestMachineThatIsDisarmedMeanwhileIsNotSwitched(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	r.netboots()
	r.provision("w1", false, false)
	order := <-bmcs.boots
	if _, err := r.operator(pki.RoleOperator).DisarmMachine(t.Context(), connect.NewRequest(&api.DisarmMachineRequest{Selection: &api.Selection{Names: []string{"w1"}}})); err != nil {
		t.Fatal(err)
	}
	err := order.still()
	if !errors.Is(err, errNotWanted) {
		t.Errorf("got %v", err)
	}
	// Armed by hand meanwhile: that arming is another's, and stays.
	r.arm("w1", false)
	if err := order.still(); !errors.Is(err, errNotWanted) {
		t.Errorf("for another arming: got %v", err)
	}
	order.end <- err
	r.provision("w1", false, false)
	(<-bmcs.boots).end <- nil
	r.until("w1", netbooted)
}

func TestServerThatDiedGoesOnWithWhatWasAsked(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	stop := r.netboots()
	r.provision("w1", false, false)
	<-bmcs.boots
	stop()
	cfg := config(cp1(), w1())
	cfg.BMC = bmcs
	r.restart(cfg)
	r.netboots()
	(<-bmcs.boots).end <- nil
	r.until("w1", netbooted)
}

func TestPowerIsAskedForByNameAndLogged(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	power := func(sel *api.Selection, a api.PowerMachineRequest_Action, force bool) []*api.Outcome {
		t.Helper()
		resp, err := r.operator(pki.RoleOperator).PowerMachine(t.Context(), connect.NewRequest(&api.PowerMachineRequest{Selection: sel, Action: a, Force: force}))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg.GetOutcomes()
	}
	w1 := &api.Selection{Names: []string{"w1"}}
	if got := power(&api.Selection{All: true}, api.PowerMachineRequest_ACTION_STATUS, false); len(got) != 1 || !got[0].GetOk() || got[0].GetMessage() != "on" {
		t.Errorf("got %v", got)
	}
	if got := power(&api.Selection{Names: []string{"cp1"}}, api.PowerMachineRequest_ACTION_OFF, false); got[0].GetReasonCode() != "no-bmc" {
		t.Errorf("a machine without a BMC: %v", got)
	}
	if got := power(&api.Selection{Names: []string{"x"}}, api.PowerMachineRequest_ACTION_OFF, false); got[0].GetOk() {
		t.Errorf("an unknown machine: %v", got)
	}
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.arm("w1", false)
	f.sync(installer())
	if got := power(w1, api.PowerMachineRequest_ACTION_CYCLE, false); got[0].GetReasonCode() != "writes-its-disk" {
		t.Errorf("a machine that writes its disk: %v", got)
	}
	if got := power(w1, api.PowerMachineRequest_ACTION_CYCLE, true); !got[0].GetOk() {
		t.Errorf("with the word: %v", got)
	}
	bmcs.mu.Lock()
	bmcs.fail = errors.New("asking redfish 10.9.0.1: no answer")
	bmcs.mu.Unlock()
	if got := power(w1, api.PowerMachineRequest_ACTION_ON, false); got[0].GetReasonCode() != "bmc" || got[0].GetMessage() != "asking redfish 10.9.0.1: no answer" {
		t.Errorf("a BMC that fails: %v", got)
	}
	if _, err := r.operator(pki.RoleOperator).PowerMachine(t.Context(), connect.NewRequest(&api.PowerMachineRequest{Selection: w1})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("no action: %v", err)
	}
	if want := []string{"w1 ACTION_STATUS", "w1 ACTION_CYCLE", "w1 ACTION_ON"}; !slices.Equal(bmcs.asked, want) {
		t.Errorf("got %v, want %v", bmcs.asked, want)
	}
	var logged []string
	var at audit.Tip
	for line, err := range r.store.AuditLines(t.Context()) {
		var e audit.Entry
		if err == nil {
			e, at, err = audit.Open(at, line)
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(e.Action, "power-") {
			logged = append(logged, e.Action+" "+e.Machine+" "+e.Detail)
		}
	}
	if want := []string{"power-cycle w1 by redfish 10.9.0.1", "power-on w1 by redfish 10.9.0.1"}; !slices.Equal(logged, want) {
		t.Errorf("got %v, want %v", logged, want)
	}
}

// shown is a machine as operators see it.
func (r *rig) shown(name string) *api.MachineView {
	r.t.Helper()
	resp, err := r.operator(pki.RoleReader).ListMachines(r.t.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, m := range resp.Msg.GetMachines() {
		if m.GetName() == name {
			return m
		}
	}
	r.t.Fatalf("there is no machine %s", name)
	return nil
}

// The installer's image is taken out once it runs, also when that takes two attempts,
// and not while the machine has not read it.
func TestVirtualMediaAreEjectedWhenTheInstallerRuns(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	bmcs.media = true
	r.ejectPause = time.Millisecond
	w := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.netboots()
	if o := r.provision("w1", false, false); !o.GetOk() {
		t.Fatalf("got %v", o)
	}
	(<-bmcs.boots).end <- nil
	if m := r.until("w1", netbooted); !m.Media {
		t.Errorf("the record does not say that there is an image in it: %+v", m)
	}
	if d := w.sync(installer()); d.GetInstall() == nil {
		t.Fatalf("want an Install directive, got %v", d)
	}
	m := r.until("w1", func(m store.Machine) bool { return !m.Media })
	bmcs.mu.Lock()
	defer bmcs.mu.Unlock()
	if m.State != machine.Installing || bmcs.ejections != 2 {
		t.Errorf("%s, %d ejections", m.State, bmcs.ejections)
	}
	entries := r.audited("media-ejected")
	if len(entries) != 1 || entries[0].Detail != "by redfish 10.9.0.1" {
		t.Errorf("audited: %v", entries)
	}
}
