package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	statestore "github.com/imagectl/imagectl/bootstrap/store"
)

// TestClientScripts runs the client verbs against a real server on loopback with
// one control plane cp1 (52:54:00:00:00:01) and one worker w1 (…:02). Beside
// testscript's own commands there is
//
//	asks MAC VAR      a machine asks to be enrolled; its console's code goes to VAR
//	ends FILE         the certificate in a context file is another one, which has ended
//	exits CODE PROGRAM ARG...
func TestClientScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/client",
		UpdateScripts: *update,
		Setup:         setUpServer,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"ends":  ends,
			"asks": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 2 {
					ts.Fatalf("usage: asks MAC VAR")
				}
				r, ok := ts.Value("rack").(rackOnLoopback)
				if !ok {
					ts.Fatalf("there is no server")
				}
				code, err := r.ask(args[0])
				ts.Check(err)
				ts.Setenv(args[1], code)
			},
		},
	})
}

// fakeBoot stands for the boot path.
type fakeBoot struct{}

func (fakeBoot) Explain(asked string) (serverapi.BootAnswer, bool) {
	return serverapi.BootAnswer{Action: "local", Code: "not-armed", Reason: "it is not armed", Machine: "cp1", Script: "#!ipxe\nexit\n",
		Events:  []serverapi.BootEvent{{At: time.Unix(0, 0), Stage: "dhcp", Detail: "offered 10.0.0.1"}},
		Console: []serverapi.BootEvent{{At: time.Unix(0, 0), Stage: "ipxe", Detail: "net0: link up"}}}, asked == "cp1"
}

func (fakeBoot) Last([]string) (serverapi.BootEvent, bool) { return serverapi.BootEvent{}, false }

func (fakeBoot) Notices() []string {
	return []string{"another DHCP server gives out addresses on the boot network: 10.0.0.9"}
}

// Named knows the card of a machine that a selector names.
func (fakeBoot) Named(macs []string) string {
	if slices.Contains(macs, "52:54:00:00:00:77") {
		return "w1"
	}
	return ""
}

// fakeBMCs stands for the BMC of w1, which is switched at once.
type fakeBMCs struct{ on *atomic.Bool }

func (fakeBMCs) Names(machine string) (string, bool) { return "redfish 10.9.0.1", machine == "w1" }

func (f fakeBMCs) Power(_ context.Context, _ string, a api.PowerMachineRequest_Action) (string, error) {
	switch a {
	case api.PowerMachineRequest_ACTION_RESET:
		return "", errors.New("resetting the machine: it is off; switch it on instead")
	case api.PowerMachineRequest_ACTION_ON:
		f.on.Store(true)
	}
	if f.on.Load() {
		return "on", nil
	}
	return "off", nil
}

func (fakeBMCs) Media(string) bool { return false }

func (fakeBMCs) Eject(context.Context, string) error { return nil }

// Boot fails where the machine is on.
func (f fakeBMCs) Boot(_ context.Context, _ string, still func() error, _ func(string)) error {
	if f.on.Load() {
		return errors.New("asking redfish 10.9.0.1: login: no answer in time")
	}
	return still()
}

type rackOnLoopback struct {
	url string
	ca  []byte
}

func setUpServer(env *testscript.Env) error {
	st, err := statestore.Open(context.Background(), statestore.Config{Dir: filepath.Join(env.WorkDir, "state"), Cluster: "demo", Log: new(strings.Builder), Volatile: true})
	if err != nil {
		return err
	}
	keeper, err := setUpBackups(env.WorkDir, st)
	if err != nil {
		return err
	}
	s, err := serverapi.New(context.Background(), serverapi.Config{
		Cluster: "demo", Version: "test", NodeServers: []string{"https://127.0.0.1:8443"},
		Machines: []serverapi.Machine{
			{Name: "cp1", Role: "control-plane", ControlPlane: true, MACs: []string{"52:54:00:00:00:01"}, Disk: &api.DiskRule{}},
			{Name: "w1", Role: "worker", MACs: []string{"52:54:00:00:00:02"}, Disk: &api.DiskRule{}},
		},
		Tokens: true, Store: st, Boot: fakeBoot{}, BMC: fakeBMCs{new(atomic.Bool)}, Backups: keeper, Now: time.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.Serve(ctx, l) }()
	go func() { done <- s.Netboot(ctx) }()
	env.Defer(func() {
		cancel()
		<-done
		<-done
		st.Close()
	})
	url := "https://" + l.Addr().String()
	for name, role := range map[string]pki.Role{"admin.json": pki.RoleAdmin, "reader.json": pki.RoleReader} {
		cert, key, _, err := s.Operator(ctx, "ada", role)
		if err != nil {
			return err
		}
		c := serverContext{Cluster: "demo", Server: url, CA: string(s.CAPEM()), Certificate: string(cert), Key: string(key)}
		if err := c.write(filepath.Join(env.WorkDir, name)); err != nil {
			return err
		}
		// The same operator, but nobody listens.
		c.Server = "https://127.0.0.1:1"
		if err := c.write(filepath.Join(env.WorkDir, "away-"+name)); err != nil {
			return err
		}
		// There are two servers, of which the first is away.
		c.Servers = []string{c.Server, url}
		if err := c.write(filepath.Join(env.WorkDir, "two-"+name)); err != nil {
			return err
		}
	}
	env.Setenv("IMAGECTL_CONFIG", filepath.Join(env.WorkDir, "admin.json"))
	env.Values["rack"] = rackOnLoopback{url: url, ca: s.CAPEM()}
	return expiredContext(env, s, url)
}

// setUpBackups makes recovery.key and other.key, and backups in the directory backups,
// which is not there yet.
func setUpBackups(dir string, st *statestore.Store) (*backup.Keeper, error) {
	var recipients []string
	for _, name := range []string{"other.key", "recovery.key"} {
		key, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(key.String()+"\n"), 0o600); err != nil {
			return nil, err
		}
		recipients = []string{key.Recipient().String()}
	}
	return newKeeper(backup.Config{
		Header: backup.Header{Cluster: "demo", Program: "test", Servers: []string{"https://127.0.0.1:8443"}},
		Store:  st, Dir: filepath.Join(dir, "backups"), Every: time.Hour, Keep: 2, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}, recipients)
}

// expiredContext writes expired.json: a certificate of yesterday's.
func expiredContext(env *testscript.Env, s *serverapi.Server, url string) error {
	ca, err := pki.NewCA("imagectl demo", 48*time.Hour, 48*time.Hour, time.Now(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return err
	}
	public, err := pki.OwnKey(key)
	if err != nil {
		return err
	}
	profile, err := pki.Operator("demo", "ada", pki.RoleAdmin, pki.Lifetimes{})
	if err != nil {
		return err
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	for name, at := range map[string]time.Time{"expired.json": time.Now().Add(-24 * time.Hour), "stranger.json": time.Now()} {
		issued, err := ca.Sign(profile, public, at, rand.Reader)
		if err != nil {
			return err
		}
		c := serverContext{Cluster: "demo", Server: url, CA: string(s.CAPEM()), Certificate: string(issued.PEM), Key: string(keyPEM)}
		if err := c.write(filepath.Join(env.WorkDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// ends puts a certificate of yesterday's, for the same key, into a context file.
func ends(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ends FILE")
	}
	b, err := os.ReadFile(args[0])
	ts.Check(err)
	var c serverContext
	ts.Check(json.Unmarshal(b, &c))
	key, err := readOperatorKey(c.KeyFile)
	ts.Check(err)
	public, err := pki.OwnKey(key)
	ts.Check(err)
	ca, err := pki.NewCA("imagectl demo", 48*time.Hour, 48*time.Hour, time.Now(), rand.Reader)
	ts.Check(err)
	profile, err := pki.Operator("demo", "grace", pki.RoleReader, pki.Lifetimes{})
	ts.Check(err)
	issued, err := ca.Sign(profile, public, time.Now().Add(-24*time.Hour), rand.Reader)
	ts.Check(err)
	c.Certificate = string(issued.PEM)
	ts.Check(c.write(args[0]))
}

// ask enrols a new key for a network card and returns the code on the console.
func (r rackOnLoopback) ask(mac string) (string, error) {
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return "", err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return "", err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.ca)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	defer tr.CloseIdleConnections()
	_, err = apiconnect.NewEnrolServiceClient(&http.Client{Transport: tr}, r.url).Enrol(context.Background(), connect.NewRequest(&api.EnrolRequest{
		CsrDer: csr, Mode: api.Mode_MODE_INSTALLER, Facts: &api.Facts{Bmc: &api.Controller{Address: "10.9.0.12", Mac: "00:25:90:01:02:03", Vlan: 9}, Interfaces: []*api.NetworkInterface{{Name: "eth0", Mac: mac, Up: true, Addresses: []string{"10.0.0.21/24"},
			Neighbour: &api.Neighbour{Chassis: "52:54:00:ff:00:01", System: "leaf-3a", Port: "swp7", PortDescription: "rack 3", Vlan: 101}}}},
	}))
	if err != nil {
		return "", err
	}
	ca, err := pki.ParseCertificatePEM(r.ca)
	if err != nil {
		return "", err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", err
	}
	return enrol.Code(ca, spki), nil
}
