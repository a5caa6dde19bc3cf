package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// What the server leaves in its directory for the one who measures.
const (
	caFile       = "ca.pem"
	operatorFile = "operator.pem"
)

func openStore(ctx context.Context, dir string) (*store.Store, error) {
	return store.Open(ctx, store.Config{Dir: filepath.Join(dir, "state"), Cluster: "bench", Log: os.Stderr})
}

func config(st *store.Store, machines int) serverapi.Config {
	c := serverapi.Config{
		Cluster: "bench", Version: "bench", Store: st, Tokens: true,
		NodeServers: []string{"https://127.0.0.1:8443"}, ServerAddresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		Kubernetes: serverapi.Kubernetes{Version: "v1.36.3", PodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/12", DNSDomain: "cluster.local"},
		Now:        time.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler),
	}
	for i := range machines {
		c.Machines = append(c.Machines, serverapi.Machine{Name: nameOf(i), Role: "worker", MACs: []string{macOf(i)}})
	}
	return c
}

// serveOurs is the server that imagectl serve runs, with its store on the disk, in a
// process of its own. It says where it listens and serves until it is killed, or
// standard input ends.
func serveOurs(ctx context.Context, dir string, machines int, profile string) error {
	st, err := openStore(ctx, dir)
	if err != nil {
		return err
	}
	defer st.Close()
	s, err := serverapi.New(ctx, config(st, machines))
	if err != nil {
		return err
	}
	cert, key, _, err := s.Operator(ctx, "bench", pki.RoleOperator)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, caFile), s.CAPEM(), 0o600),
		os.WriteFile(filepath.Join(dir, operatorFile), append(cert, key...), 0o600)); err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return untilInputEnds(ctx, l, s.Serve)
}

// untilInputEnds says where l listens and serves.
func untilInputEnds(ctx context.Context, l net.Listener, serve func(context.Context, net.Listener) error) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l) }()
	fmt.Println("https://" + l.Addr().String())
	_, err := io.Copy(io.Discard, os.Stdin)
	cancel()
	return errors.Join(err, <-done)
}

// rig is our server in a process of its own, and an operator of it.
type rig struct {
	*child
	roots *x509.CertPool
	op    apiconnect.OperatorServiceClient
	ca    *x509.Certificate
}

func (b *bench) ours(ctx context.Context, name string) (*rig, error) {
	dir := filepath.Join(b.dir, name)
	args := []string{"-serve", "imagectl", "-agents", fmt.Sprint(b.agents)}
	if b.profile != "" {
		args = append(args, "-cpuprofile", b.profile+"."+name)
	}
	c, err := start(ctx, dir, args...)
	if err != nil {
		return nil, err
	}
	r := &rig{child: c}
	if r.roots, r.ca, err = readCA(dir); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, operatorFile), filepath.Join(dir, operatorFile))
	if err != nil {
		return nil, err
	}
	// One connection carries all of the operator's calls.
	r.op = apiconnect.NewOperatorServiceClient(&http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: r.roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}}}, r.url)
	return r, nil
}

// byToken: every machine has a token and asks at once; no person is needed.
func (b *bench) byToken(ctx context.Context) error {
	agents, err := newAgents(b.agents)
	if err != nil {
		return err
	}
	r, err := b.ours(ctx, "token")
	if err != nil {
		return err
	}
	made, err := all(ctx, agents, func(ctx context.Context, a *simulated) error {
		resp, err := r.op.IssueToken(ctx, connect.NewRequest(&api.IssueTokenRequest{Machine: a.name, Minutes: 60}))
		if err == nil {
			a.token = resp.Msg.GetToken()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("making tokens: %w", err)
	}
	before, err := r.spent()
	if err != nil {
		return err
	}
	got, err := all(ctx, agents, func(ctx context.Context, a *simulated) error {
		return a.enrol(ctx, r.url, r.roots, func() {})
	})
	if err != nil {
		return err
	}
	after, err := r.spent()
	if err != nil {
		return err
	}
	fmt.Printf("%-44s %6.0f/s\n", "imagectl, tokens made", made.rate())
	b.print("imagectl, enrolled by tokens", got, after.since(before), verdict(got))
	return b.prove(ctx, r, agents)
}

// byApproval: every machine waits with its code; then an operator accepts all.
func (b *bench) byApproval(ctx context.Context) error {
	agents, err := newAgents(b.agents)
	if err != nil {
		return err
	}
	r, err := b.ours(ctx, "approve")
	if err != nil {
		return err
	}
	var waiting sync.WaitGroup
	waiting.Add(len(agents))
	begin := time.Now()
	type answer struct {
		result
		err error
	}
	done := make(chan answer, 1)
	go func() {
		got, err := all(ctx, agents, func(ctx context.Context, a *simulated) error {
			return a.enrol(ctx, r.url, r.roots, waiting.Done)
		})
		done <- answer{got, err}
	}()
	everybody := make(chan struct{})
	go func() { waiting.Wait(); close(everybody) }()
	select {
	case <-everybody:
	case a := <-done:
		return errors.Join(errors.New("an agent gave up before an operator came"), a.err)
	}
	asked := time.Since(begin)
	req := &api.ApproveMachineRequest{Selection: &api.Selection{}, Codes: map[string]string{}}
	for _, a := range agents {
		spki, err := x509.MarshalPKIXPublicKey(a.key.Public())
		if err != nil {
			return err
		}
		req.Selection.Names = append(req.Selection.Names, a.name)
		req.Codes[a.name] = enrol.Code(r.ca, spki)
	}
	before, err := r.spent()
	if err != nil {
		return err
	}
	begin = time.Now()
	resp, err := r.op.ApproveMachine(ctx, connect.NewRequest(req))
	if err != nil {
		return fmt.Errorf("approving: %w", err)
	}
	approved := time.Now()
	for _, o := range resp.Msg.GetOutcomes() {
		if !o.GetOk() {
			return fmt.Errorf("approving %s: %s", o.GetMachine(), o.GetMessage())
		}
	}
	end := <-done
	if end.err != nil {
		return end.err
	}
	got := result{took: time.Since(begin)}
	for _, d := range end.each {
		got.each = append(got.each, d-asked) // what each waits from the moment that the operator asks
	}
	after, err := r.spent()
	if err != nil {
		return err
	}
	fmt.Printf("%-44s %6.0f/s  until the last has its code on record %6.2f s; approved by one command in %.2f s\n", "imagectl, asked to be let in", float64(len(agents))/asked.Seconds(), asked.Seconds(), approved.Sub(begin).Seconds())
	b.print("imagectl, approved and enrolled", got, after.since(before), verdict(got))
	return b.prove(ctx, r, agents)
}

// prove uses each certificate, kills the server, and looks at what is on its disk.
func (b *bench) prove(ctx context.Context, r *rig, agents []*simulated) error {
	used, err := all(ctx, agents, func(ctx context.Context, a *simulated) error { return a.report(ctx, r.url, r.roots) })
	if err != nil {
		return err
	}
	if b.profile != "" {
		err = r.end()
	} else {
		err = r.kill()
	}
	if err != nil {
		return err
	}
	st, err := openStore(ctx, r.dir)
	if err != nil {
		return err
	}
	defer st.Close()
	issued := map[string]bool{}
	var tip audit.Tip
	for line, err := range st.AuditLines(ctx) {
		if err != nil {
			return err
		}
		var e audit.Entry
		if e, tip, err = audit.Open(tip, line); err != nil {
			return err
		}
		if e.Action == "certificate-issued" {
			_, rest, _ := strings.Cut(e.Detail, "serial ")
			serial, _, _ := strings.Cut(rest, ",")
			issued[e.Machine+" "+serial] = true
		}
	}
	for _, a := range agents {
		m, _ := st.Machine(a.name)
		serial := pki.Serial(a.leaf)
		if m.Key == nil || m.Key.Serial != serial || !issued[a.name+" "+serial] {
			return fmt.Errorf("%s holds certificate %s, which the server's disk does not: %+v", a.name, serial, m.Key)
		}
	}
	fmt.Printf("%-44s %6.0f/s  after kill -9 the disk holds all %d certificates; the audit chain of %d entries is whole and names each\n", "imagectl, first reports", used.rate(), len(agents), tip.Seq)
	return nil
}
