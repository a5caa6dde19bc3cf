package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func TestAMachineShowsItsCodeUntilItIsApprovedAndKeepsItsKey(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.approved = false
	stop := l.start(nodeconf.Installer)
	waitFor(l, "the second enrolment", func() (int, bool) { return l.enrols, l.enrols >= 2 })
	stop()
	console := l.read("/dev/console")
	a := l.agent(nodeconf.Installer)
	if err := a.open(); err != nil {
		t.Fatal(err)
	}
	if code := a.code(); len(code) != 14 || !strings.Contains(console, "  CODE    "+code+"\r\n") {
		t.Errorf("the console does not show the code %s:\n%s", code, console)
	}
	if !strings.Contains(console, "  status  an operator has to approve this machine\r\n") {
		t.Errorf("the console does not say what it waits for:\n%s", console)
	}
	key := l.read(KeyPath)
	for name, want := range map[string]fs.FileMode{KeyPath: 0o600, StateDir: 0o700} {
		if got, err := l.node.Mode(name); err != nil || got != want {
			t.Errorf("%s: got mode %v, %v, want %v", name, got, err, want)
		}
	}

	l.set(func() { l.approved = true })
	stop = l.start(nodeconf.Installer)
	l.wait("the first report", func(r *api.SyncRequest) bool {
		return r.GetBootId() == "boot-1" && r.GetMode() == api.Mode_MODE_INSTALLER
	})
	stop()
	var enrols int
	l.set(func() { enrols = l.enrols })
	stop = l.start(nodeconf.Installer)
	l.wait("another report", func(r *api.SyncRequest) bool { return true })
	stop()
	if l.enrols != enrols || l.read(KeyPath) != key {
		t.Error("a restart enrolled again or made another key")
	}
}

func TestCertificatesAreRenewedAtAThirdAndReplacedWhenExpired(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	stop := l.start(nodeconf.Installer)
	l.wait("a report", func(*api.SyncRequest) bool { return true })
	stop()
	for _, tc := range []struct {
		later           time.Duration
		enrols, renewed int
	}{
		{9 * 24 * time.Hour, 1, 0},
		{11 * 24 * time.Hour, 1, 1},
		{20 * 24 * time.Hour, 1, 1},
		{70 * 24 * time.Hour, 2, 1},
	} {
		l.set(func() { l.now = tc.later })
		stop := l.start(nodeconf.Installer)
		l.wait("a report", func(*api.SyncRequest) bool { return true })
		stop()
		if l.enrols != tc.enrols || len(l.issued) != tc.renewed {
			t.Errorf("after %v: got %d enrolments, %d renewals, want %d, %d", tc.later, l.enrols, len(l.issued), tc.enrols, tc.renewed)
		}
	}
}

func TestACertificateThatTheServerRefusesIsReplaced(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.refuse = connect.NewError(connect.CodeUnauthenticated, errors.New("this certificate is revoked"))
	l.start(nodeconf.Installer)
	waitFor(l, "the second enrolment", func() (int, bool) { return l.enrols, l.enrols >= 2 })
}

func TestVerifyServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	roots := []*x509.Certificate{l.ca.Certificate()}
	addr := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	server := func(cluster string) tls.Certificate {
		p, err := pki.Server(cluster, nil, addr, pki.Lifetimes{})
		return l.certificate(p, err)
	}
	p, err := pki.Node(pki.Machine{Cluster: "lab", Name: "w1", Address: addr[0]}, pki.Lifetimes{})
	node := l.certificate(p, err)
	now := time.Now()
	for name, tc := range map[string]struct {
		cert tls.Certificate
		now  time.Time
		want string
	}{
		"the server":              {server("lab"), now, ""},
		"a clock without battery": {server("lab"), time.Unix(0, 0), ""},
		"an expired server":       {server("lab"), now.Add(31 * 24 * time.Hour), "verifying the server: x509: certificate has expired or is not yet valid: current time"},
		"another cluster's":       {server("prod"), now, "belongs to cluster prod, this is lab"},
		"a node":                  {node, now, "verifying the server: imagectl://lab/node/w1 is no server"},
	} {
		err := verifyServer("lab", roots, tc.now, tls.ConnectionState{PeerCertificates: []*x509.Certificate{tc.cert.Leaf}})
		if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	other := newLab(t)
	op, oerr := pki.Server("lab", nil, addr, pki.Lifetimes{})
	if err := verifyServer("lab", roots, now, tls.ConnectionState{PeerCertificates: []*x509.Certificate{other.certificate(op, oerr).Leaf}}); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("another CA: got %v", err)
	}
	if err := verifyServer("lab", roots, now, tls.ConnectionState{}); err == nil {
		t.Error("no certificate: got no error")
	}
}

func TestBackoffGrowsToAHalfMinute(t *testing.T) {
	t.Parallel()
	var b backoff
	var got []string
	for range 8 {
		got = append(got, b.next(1).String())
	}
	if got, want := strings.Join(got, " "), "500ms 1s 2s 4s 8s 16s 30s 30s"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	b.reset()
	if got := b.next(0); got != 250*time.Millisecond {
		t.Errorf("got %v", got)
	}
}

func TestADamagedKeyIsSaidAndNotReplaced(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.put(KeyPath, "garbage")
	err := l.agent(nodeconf.Node).open()
	if want := "reading the agent's key /var/lib/imagectl/agent.key: there is no PEM private key in it; without it the machine has to be enrolled again: remove the file and approve the new code"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if l.read(KeyPath) != "garbage" {
		t.Error("the key was replaced")
	}
}

// A machine that slept past the end of its certificate and lost its clock too
// takes the certificate for good. The server turns it away in the handshake, and
// so it never hears what time it is unless it enrols.
func TestAnExpiredCertificateAndAClockThatStandsStill(t *testing.T) {
	l := newLab(t)
	stop := l.start(nodeconf.Installer)
	l.wait("the first report", func(*api.SyncRequest) bool { return true })
	stop()
	old := l.read(CertPath)
	l.set(func() { l.now = 60 * 24 * time.Hour }) // the server's clock
	a := l.agent(nodeconf.Installer)
	a.Now = time.Now // the machine's
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	l.wait("a report with a new certificate", func(*api.SyncRequest) bool { return true })
	if l.read(CertPath) == old {
		t.Error("it reports with the expired certificate")
	}
}
