//go:build root

package native

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// etcd's CA is replaced under three control planes, while others write to etcd and to Kubernetes
// through all of them: first undisturbed, then with every agent killed in every stage and whenever it
// is at a step of it, and the server started anew in every stage. openssl says what each member
// shows and takes before, amid and after; etcdctl with what was good before is refused in the end.
func TestDrillsEtcdsCAIsReplaced(t *testing.T) {
	r := newRack(t, "cp1", "cp2", "cp3")
	r.approve()
	r.ready(30*time.Minute, func(map[string]*api.MachineView) {})
	r.voters(3)
	r.threeAPIServers()

	w := r.writeAs(r.nodes["cp1"].living())
	w.more(50)
	var creators []*creator
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		creators = append(creators, r.create(name, "ca"))
	}
	first := r.authorities("cp1")
	r.opensslFinds("before", first[0], first[0])
	r.setAside("cp1")

	before := w.count()
	w.since(before) // what was before does not count
	began := time.Now()
	second := r.replaceCA(w, func(string) {})
	took := time.Since(began)
	acked, gap := w.since(before)
	r.opensslFinds("after", second, second)
	apiGap := r.worst(creators)
	t.Logf("etcd's CA replaced in %.0f s: %d writes to etcd acknowledged meanwhile, %.2f s at most between two; Kubernetes took writes again after %.2f s at most", took.Seconds(), acked, gap.Seconds(), apiGap.Seconds())
	r.refused("cp1", first[0])

	// The same under kills. A node's balancer dies with its agent, so the API's gaps say nothing.
	k := &stageKiller{rack: r, done: map[string]bool{}}
	began = time.Now()
	third := r.replaceCA(w, k.look)
	t.Logf("replaced again in %.0f s, with agents killed %d times and the server started anew %d times", time.Since(began).Seconds(), k.kills, k.restarts)
	if k.kills < 9 || k.restarts < 3 {
		t.Errorf("too few: %d kills, %d restarts", k.kills, k.restarts)
	}
	r.opensslFinds("after the kills", third, third)
	r.refused("cp1", second)

	for _, c := range creators {
		c.stop()
	}
	w.stop()
	w.verify()
	have := r.created(t, "cp1")
	for _, c := range creators {
		if n := lost(c.soFar(), have); n > 0 {
			t.Errorf("%d acknowledged writes to Kubernetes through %s are lost", n, c.via)
		}
	}
	r.voters(3)
	r.ready(10*time.Minute, func(map[string]*api.MachineView) {})
	r.threeAPIServers()
	r.check()
}

// path is a file of a node as this test sees it.
func (m *machine) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", m.pid, name) }

// living is certificate for a client that outlives what it reads: it reads it at each handshake.
func (m *machine) living() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			b, err := os.ReadFile(m.path(etcd.ClientPath))
			if err != nil {
				return nil, err
			}
			pair, err := tls.X509KeyPair(b, b)
			return &pair, err
		},
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(s tls.ConnectionState) error {
			b, err := os.ReadFile(m.path(etcd.CAPath))
			if err != nil {
				return err
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(b)
			_, err = s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	}
}

// authorities are the CAs of etcd that a node trusts, the one that signs first.
func (r *rack) authorities(name string) []*x509.Certificate {
	r.t.Helper()
	b, err := os.ReadFile(r.nodes[name].path(etcd.CAPath))
	if err != nil {
		r.t.Fatal(err)
	}
	all, err := pki.ParseCertificatesPEM(b)
	if err != nil || len(all) == 0 {
		r.t.Fatalf("%s: %v, %d certificates", etcd.CAPath, err, len(all))
	}
	return all
}

// replaceCA replaces it, calls each with the stage again and again, and returns the new one. As soon
// as both are trusted everywhere, openssl looks.
func (r *rack) replaceCA(w *writer, each func(stage string)) *x509.Certificate {
	r.t.Helper()
	old := r.authorities("cp1")[0]
	resp, err := r.op.RotateAuthority(r.t.Context(), connect.NewRequest(&api.RotateAuthorityRequest{Ca: "etcd"}))
	if err != nil || !resp.Msg.GetChanged() {
		r.t.Fatalf("%v %v", err, resp)
	}
	if again, err := r.op.RotateAuthority(r.t.Context(), connect.NewRequest(&api.RotateAuthorityRequest{Ca: "etcd"})); err != nil || again.Msg.GetChanged() {
		r.t.Errorf("one is begun within another: %v %v", err, again)
	}
	amid := false
	r.wait(30*time.Minute, "etcd's CA", func() (bool, string) {
		now, err := r.op.ShowAuthority(r.t.Context(), connect.NewRequest(&api.ShowAuthorityRequest{}))
		if err != nil {
			return false, err.Error()
		}
		v := now.Msg.GetAuthority().GetRotations()[0]
		if v.GetStage() == "signing" && !amid {
			wrong := r.byOpenssl("amid", nil, append(r.authorities("cp1"), old)...)
			after, err := r.op.ShowAuthority(r.t.Context(), connect.NewRequest(&api.ShowAuthorityRequest{}))
			if err == nil && after.Msg.GetAuthority().GetRotations()[0].GetStage() == "signing" {
				amid = true
				for _, why := range wrong {
					r.t.Error(why)
				}
			}
		}
		each(v.GetStage())
		return v.GetStage() == "settled", v.GetStage() + ": " + strings.Join(v.GetWaits(), "; ")
	})
	if !amid {
		r.t.Error("openssl has not looked amid")
	}
	next := r.authorities("cp1")
	if len(next) != 1 || next[0].Equal(old) {
		r.t.Fatalf("there are %d CAs, and it is another one: %v", len(next), !next[0].Equal(old))
	}
	w.more(50)
	return next[0]
}

func (r *rack) opensslFinds(when string, signer *x509.Certificate, accepted ...*x509.Certificate) {
	r.t.Helper()
	for _, why := range r.byOpenssl(when, signer, accepted...) {
		r.t.Error(why)
	}
}

// byOpenssl asks openssl, for both ports of each member, whether what is shown is by signer (nil: by any
// of accepted), and which CAs' names it is sent. It returns what is wrong.
func (r *rack) byOpenssl(when string, signer *x509.Certificate, accepted ...*x509.Certificate) (wrong []string) {
	r.t.Helper()
	var want []string
	bundle := accepted
	if signer != nil {
		bundle = []*x509.Certificate{signer}
	}
	for _, c := range accepted {
		if !slices.Contains(want, "CN = "+c.Subject.CommonName) {
			want = append(want, "CN = "+c.Subject.CommonName)
		}
	}
	slices.Sort(want)
	file := filepath.Join(r.t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pki.EncodeCertificates(bundle), 0o600); err != nil {
		r.t.Fatal(err)
	}
	for name, m := range r.nodes {
		for _, port := range []string{etcd.ClientPort, etcd.PeerPort} {
			// The firewall lets this test reach the clients' port only.
			argv := []string{"nsenter", "-t", fmt.Sprint(m.pid), "-n", "openssl", "s_client", "-connect", m.address + ":" + port, "-CAfile", file, "-verify_return_error", "-cert", m.path(etcd.ClientPath), "-key", m.path(etcd.ClientPath)}
			cmd := exec.Command(argv[0], argv[1:]...)
			out, err := cmd.CombinedOutput()
			text := string(out)
			_, rest, found := strings.Cut(text, "Acceptable client certificate CA names\n")
			var have []string
			for line := range strings.Lines(rest) {
				if line = strings.TrimSpace(line); !strings.HasPrefix(line, "CN = ") {
					break
				}
				have = append(have, line)
			}
			slices.Sort(have)
			if err != nil || !found || !strings.Contains(text, "Verification: OK") || !slices.Equal(have, want) {
				wrong = append(wrong, fmt.Sprintf("%s: %s, port %s: %v, it takes certificates of %q, want %q\n%s", when, name, port, err, have, want, text))
			}
		}
	}
	r.t.Logf("%s: openssl, of what three members show on both ports, and that they take certificates of %q: %d wrong", when, want, len(wrong))
	return wrong
}

const aside = "/run/etcd-before.pem"

// setAside keeps a client's certificate of now, and sees that etcdctl is answered with it.
func (r *rack) setAside(name string) {
	r.t.Helper()
	if out, err := r.nodes[name].on("cp", etcd.ClientPath, aside); err != nil {
		r.t.Fatalf("%v %s", err, out)
	}
	if err := r.etcdctl(name, aside); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rack) etcdctl(name, bundle string) error {
	_, err := r.nodes[name].on("env", "ETCDCTL_API=3", "etcdctl", "--endpoints", strings.Join(r.endpoints(), ","), "--cacert", etcd.CAPath, "--cert", bundle, "--key", bundle, "--command-timeout", "5s", "endpoint", "health")
	return err
}

// refused: what setAside kept is good for nothing at any member, while what is there now is; then it
// keeps that.
func (r *rack) refused(name string, by *x509.Certificate) {
	r.t.Helper()
	for _, endpoint := range r.endpoints() {
		_, err := r.nodes[name].on("etcdctl", "--endpoints", endpoint, "--cacert", etcd.CAPath, "--cert", aside, "--key", aside, "--command-timeout", "5s", "endpoint", "health")
		if err == nil {
			r.t.Errorf("%s answers a client with a certificate by %s", endpoint, by.Subject)
		}
	}
	if err := r.etcdctl(name, etcd.ClientPath); err != nil {
		r.t.Errorf("what is good now: %v", err)
	}
	r.setAside(name)
}

// worst is the longest that one of them waited.
func (r *rack) worst(all []*creator) time.Duration {
	r.t.Helper()
	var worst time.Duration
	for _, c := range all {
		n, gap := c.since(0)
		if n == 0 {
			r.t.Errorf("nothing was written to Kubernetes through %s", c.via)
		}
		worst = max(worst, gap)
	}
	switch {
	case worst > 3*apiGap:
		r.t.Errorf("Kubernetes took no writes for %.1f s", worst.Seconds())
	case worst > apiGap:
		r.t.Logf("MISSED: Kubernetes took no writes for %.1f s, the goal is %v", worst.Seconds(), apiGap)
	}
	return worst
}

// stageKiller kills each agent once in each stage and whenever it is at a step of the replacement,
// and starts the server anew once in each stage.
type stageKiller struct {
	*rack
	done            map[string]bool
	kills, restarts int
}

func (k *stageKiller) once(at string) bool {
	if k.done[at] {
		return false
	}
	k.done[at] = true
	return true
}

func (k *stageKiller) kill(name, at string) {
	if !k.once(at) {
		return
	}
	if err := k.nodes[name].kill(); err != nil {
		k.t.Logf("killing at %s: %v", at, err)
		return
	}
	k.kills++
	k.t.Logf("killed at %s", at)
}

func (k *stageKiller) look(stage string) {
	if stage == "settled" {
		return
	}
	if k.once(stage) {
		k.stop()
		k.up()
		k.restarts++
		k.t.Logf("the server was started anew while %s", stage)
		return
	}
	for name, v := range k.views() {
		at := stage + " " + name
		if k.once(at + " seen") { // it is killed the next time, when it is at work
			continue
		}
		k.kill(name, at)
		for _, s := range v.GetSteps() {
			switch s.GetName() {
			case "etcd-authority", "etcd-certificates", "etcd-client-certificate", "etcd-restarted", "etcd-running", "api-server-policy", "api-server-policy-in-use", "control-plane-restarted":
				if s.GetState() == api.StepStatus_STATE_RUNNING {
					k.kill(name, at+" "+s.GetName())
				}
			}
		}
	}
}
