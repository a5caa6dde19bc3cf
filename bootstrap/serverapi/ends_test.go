package serverapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func TestSentencesAboutEndingCertificates(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	end := func(name, profile string, left time.Duration, calls bool, others int) machineEnd {
		return machineEnd{name: name, profile: profile, due: now.Add(left - 20*day), end: now.Add(left), others: others, calls: calls}
	}
	got := endSentences([]machineEnd{
		end("w2", "node", 14*day, false, 0), end("cp1", "etcd-peer", 13*day, true, 3), end("w1", "node", 5*day+time.Hour, false, 0),
		end("w3", "node", 5*day, true, 0), end("w4", "node", -day, false, 1), end("w5", "node", 15*day, false, 0), end("w6", "node", 15*day, false, 0),
	}, now)
	want := []string{
		"alarm: the certificate node of w4 has ended on 2026-05-31 (and 1 others of it later); it was to be renewed from 2026-05-11 on, and the machine does not call",
		"alarm: the certificate node of w3 ends in 5 days, on 2026-06-06; it was to be renewed from 2026-05-17 on, and the machine calls without doing that: imagectl node health w3",
		"warning: the certificate node of w1 ends in 5 days, on 2026-06-06; it was to be renewed from 2026-05-17 on, and the machine does not call",
		"warning: the certificate etcd-peer of cp1 ends in 13 days, on 2026-06-14 (and 3 others of it later); it was to be renewed from 2026-05-25 on, and the machine calls without doing that: imagectl node health cp1",
		"warning: the certificate node of w2 ends in 14 days, on 2026-06-15; it was to be renewed from 2026-05-26 on, and the machine does not call",
		"warning: certificates of 2 more machines should have been renewed; imagectl certs ls shows them",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if got := endSentences([]machineEnd{end("w1", "node", 5*time.Hour+time.Minute, false, 0)}, now); len(got) != 1 || !strings.HasPrefix(got[0], "alarm: the certificate node of w1 ends in 5 hours, on 2026-06-01;") {
		t.Errorf("hours: %q", got)
	}
}

// Status names machines whose certificates nobody has renewed, from the day on when somebody has
// to look, until they are renewed, or the machine is none any more.
func TestStatusTellsOfEndingCertificates(t *testing.T) {
	t.Parallel()
	c := newClock()
	cfg := config(cp1(), w1())
	cfg.Now = c.Now
	r := start(t, cfg)
	m := r.approvedMachine("w1", "52:54:00:00:00:02")
	m.enrol()
	began := m.cert.Leaf.NotAfter.Add(-30 * 24 * time.Hour)
	notes := func(days int) (out []string) {
		t.Helper()
		c.pass(began.Add(time.Duration(days) * 24 * time.Hour).Sub(c.Now()))
		resp, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range resp.Msg.GetNotes() {
			if strings.Contains(n, "the certificate node of") {
				out = append(out, n)
			}
		}
		return out
	}
	date := func(days int) string {
		return began.Add(time.Duration(days) * 24 * time.Hour).UTC().Format(time.DateOnly)
	}
	said := func(level string, left int) string {
		return fmt.Sprintf("%s: the certificate node of w1 ends in %d days, on %s; it was to be renewed from %s on, and the machine does not call", level, left, date(30), date(10))
	}
	for _, tc := range []struct {
		days int
		want string
	}{{0, ""}, {10, ""}, {14, ""}, {16, said("warning", 14)}, {24, said("warning", 6)}, {26, said("alarm", 4)}} {
		if got := strings.Join(notes(tc.days), "\n"); got != tc.want {
			t.Errorf("day %d:\ngot  %s\nwant %s", tc.days, got, tc.want)
		}
	}
	m.enrol() // it asks again, with the key that was approved
	if got := notes(26); got != nil {
		t.Errorf("renewed: %q", got)
	}
	if got := notes(50); len(got) != 1 {
		t.Errorf("silent again: %q", got)
	}
	r.retire("w1", "gone")
	if got := notes(51); got != nil {
		t.Errorf("retired: %q", got)
	}
}

// Certificates of etcd are a control plane's matter: of a machine that was one nobody renews them, and
// nobody has to.
func TestNobodyIsToldOfWhatAFormerControlPlaneHas(t *testing.T) {
	t.Parallel()
	c := newClock()
	was := cp1()
	cfg := config(was, w1())
	cfg.Now = c.Now
	r := start(t, cfg)
	if _, err := r.approvedMachine(was.Name, was.MACs[0]).issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER); err != nil {
		t.Fatal(err)
	}
	c.pass(60 * 24 * time.Hour)
	told := func() bool {
		t.Helper()
		resp, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		notes := strings.Join(resp.Msg.GetNotes(), "\n")
		if !strings.Contains(notes, "the certificate node of "+was.Name+" has ended on ") {
			t.Errorf("its own has ended, and status says %s", notes)
		}
		return strings.Contains(notes, " (and 1 others of it later)")
	}
	if !told() {
		t.Error("a control plane's is no note")
	}
	was.ControlPlane = false
	cfg.Machines = []Machine{was, w1()}
	r.restart(cfg)
	if told() {
		t.Error("a worker's is one")
	}
}
