package serverapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/store/storetest"
)

// peer starts one more server on an etcd that several share. Who stops gives its session up; a
// machine that stands still for some seconds takes nobody's.
func peer(t *testing.T, e *storetest.Etcd, id *age.X25519Identity, name string, cfg Config) *rig {
	t.Helper()
	r := &rig{t: t, dir: e.Member(t, id)}
	st, err := store.Open(t.Context(), store.Config{Dir: r.dir, Cluster: cfg.Cluster, Log: io.Discard, Name: name, Session: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Store = st
	s, err := New(t.Context(), cfg)
	if err != nil {
		st.Close()
		t.Fatal(err)
	}
	s.poll, s.headers = time.Hour, time.Hour
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func() error{func() error { return s.Serve(ctx, l) }, func() error { return s.Follow(ctx) }} {
		running.Go(func() {
			if err := run(); err != nil {
				t.Errorf("serving: %v", err)
			}
		})
	}
	r.store, r.Server, r.url = st, s, "https://"+l.Addr().String()
	r.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		st.Close()
	})
	t.Cleanup(r.stop)
	return r
}

// eventually waits until it is so.
func eventually(t *testing.T, st *store.Store, what string, so func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		term, records := st.TermChanged(), st.Changed()
		if so() {
			return
		}
		select {
		case <-term:
		case <-records:
		case <-time.After(20 * time.Millisecond): // for what is in memory only
		case <-late:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestTheOtherServerTakesOver(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a := peer(t, e, id, "https://a:8443", config(cp1(), w1()))
	eventually(t, a.store, "a coordinates", func() bool { return a.store.Term() != "" })
	b := peer(t, e, id, "https://b:8443", config(cp1(), w1()))
	eventually(t, b.store, "b knows a", func() bool { return b.store.Leader() == "https://a:8443" })
	if string(a.CAPEM()) != string(b.CAPEM()) {
		t.Fatal("the servers have different CAs")
	}

	// A machine enrols at one server, is approved at the other, and gets its certificate
	// from the first.
	m := b.machine("52:54:00:00:00:02")
	if got := m.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_PENDING {
		t.Fatalf("got %v", got)
	}
	eventually(t, a.store, "a hears of the key", func() bool { r, _ := a.store.Machine("w1"); return len(r.Pending) == 1 })
	if o := a.approve("w1", m.console(), false); !o.GetOk() {
		t.Fatalf("approving: %s", o.GetMessage())
	}
	eventually(t, b.store, "b hears of the approval", func() bool { r, _ := b.store.Machine("w1"); return r.Key != nil })
	if got := m.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Fatalf("got %v", got)
	}
	if o := a.arm("w1", false); !o.GetOk() {
		t.Fatalf("arming: %s", o.GetMessage())
	}

	// Only the one that coordinates tells machines what to do, and says who it is.
	_, err := m.agent().Sync(t.Context(), connect.NewRequest(&api.SyncRequest{Mode: api.Mode_MODE_INSTALLER}))
	if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "https://a:8443 coordinates now; ask there") {
		t.Errorf("b answers a machine: %v", err)
	}
	if _, err := b.operator(pki.RoleAdmin).Status(t.Context(), connect.NewRequest(&api.StatusRequest{})); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("b answers an operator: %v", err)
	}
	for path, want := range map[string]int{ReadyPath: http.StatusOK, CoordinatesPath: http.StatusServiceUnavailable} {
		resp, err := b.client(nil).Get(b.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("b says %s to %s, want %d", resp.Status, path, want)
		}
	}

	// The machine begins at a, which then is gone; it ends at b, and is not installed again.
	at := *m
	at.rig = a
	if d := at.sync(&api.SyncRequest{Mode: api.Mode_MODE_INSTALLER}); d.GetInstall() == nil {
		t.Fatalf("a says %v", d)
	}
	a.stop()
	eventually(t, b.store, "b coordinates", func() bool { return b.store.Term() != "" })
	if d := m.sync(&api.SyncRequest{Mode: api.Mode_MODE_INSTALLER, Installed: true}); d.GetReboot() == nil {
		t.Errorf("b says %v to a machine that is installed", d)
	}
	if d := m.sync(&api.SyncRequest{Mode: api.Mode_MODE_INSTALLER}); d.GetInstall() != nil {
		t.Error("the disk is written a second time")
	}
	if got := b.store.State("w1"); got != machine.Installed {
		t.Errorf("the machine is %s", got)
	}
	if _, err := b.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

// What one server revokes counts at the other one, without a restart.
func TestRevocationsReachTheOtherServer(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a := peer(t, e, id, "https://a:8443", config(cp1(), w1()))
	eventually(t, a.store, "a coordinates", func() bool { return a.store.Term() != "" })
	b := peer(t, e, id, "https://b:8443", config(cp1(), w1()))
	eve, _, _, err := a.Operator(t.Context(), "eve", pki.RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.ParseCertificatePEM(eve)
	if err != nil {
		t.Fatal(err)
	}
	as := caller{serial: pki.Serial(leaf)}
	if err := b.allowSerial(as); err != nil {
		t.Fatal(err)
	}
	resp, err := a.operator(pki.RoleAdmin).RevokeCertificates(t.Context(), connect.NewRequest(&api.RevokeCertificatesRequest{Serials: []string{as.serial}, Reason: "left"}))
	if err != nil || !resp.Msg.GetOutcomes()[0].GetOk() {
		t.Fatal(resp, err)
	}
	eventually(t, b.store, "b refuses what a has revoked", func() bool { return b.allowSerial(as) != nil })
}

// A choice that is made once is made by the server that coordinates, by what is stored
// and not by what it remembers.
func TestChoicesOfAnotherTermAreKept(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a := peer(t, e, id, "https://a:8443", config(cp1(), w1()))
	eventually(t, a.store, "a coordinates", func() bool { return a.store.Term() != "" })
	b := peer(t, e, id, "https://b:8443", config(cp1(), w1()))
	want := coordinator.Choices{EtcdFirst: "cp1"}
	if err := a.store.Change(t.Context(), func(tx *store.Tx) error { return tx.PutValue(valueChoices, want) }); err != nil {
		t.Fatal(err)
	}
	err := b.coordinate(t.Context(), b.self(), func(c *change) error { return c.tx.PutValue(valueChoices, coordinator.Choices{EtcdFirst: "w1"}) })
	if !errors.Is(err, store.ErrNotLeading) {
		t.Errorf("b chooses though a coordinates: %v", err)
	}
	a.stop()
	eventually(t, b.store, "b coordinates", func() bool { return b.store.Term() != "" })
	_, got, err := b.decide(t.Context())
	if err != nil || got.EtcdFirst != "cp1" {
		t.Errorf("b goes on with %+v, %v", got, err)
	}
}

func TestHealthIsSaidToAnybody(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1()))
	for _, path := range []string{ReadyPath, CoordinatesPath} {
		resp, err := r.client(nil).Get(r.url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || string(body) != "ok\n" {
			t.Errorf("%s: %s %q, %v", path, resp.Status, body, err)
		}
	}
}
