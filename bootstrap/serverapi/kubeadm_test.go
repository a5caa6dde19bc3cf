package serverapi

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func (r *rig) allNotes() string {
	r.t.Helper()
	nodes, choices, err := r.decide(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Join(r.notes(nodes, choices), "\n")
}

// A control plane gets its turn after a third of the life of what kubeadm made, keeps it
// until all runs with the new ones, and status warns when that does not happen.
func TestAControlPlaneGetsItsTurnToRenewWhatKubeadmMade(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	cfg.Kubernetes.CAKeyOnNodes = true
	r := start(t, cfg)
	cp := r.member("cp1", "52:54:00:00:00:01")
	const renews = "cp1 renews the certificates of its control plane, and starts it anew"
	const late = "warning: a certificate that kubeadm made on cp1 ends at DATE and should have been renewed: they are being renewed"
	for _, c := range []struct {
		when         string
		left         int // days
		stale, ready bool
		turn         bool
		note         string
	}{
		{"at first", 365, false, true, false, ""},
		{"a day before a third of their life is over", 241, false, true, false, ""},
		{"a third of their life is over", 239, false, true, true, renews},
		{"its API server is down", 239, false, false, true, renews},
		{"renewed, and not in use", 365, true, true, true, renews},
		{"renewed, and not ready", 365, false, false, true, renews},
		{"all is well", 365, false, true, false, ""},
		{"killed before it started anything anew", 365, true, true, true, renews},
		{"it comes to nothing for long", 89, false, true, true, late},
		{"they have ended", -1, false, false, true, late},
		{"all is well again", 365, false, true, false, ""},
	} {
		end := time.Now().Add(time.Duration(c.left) * 24 * time.Hour)
		report := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{Running: true, Healthy: true, MemberId: "1"},
			Kubernetes: &api.KubernetesObserved{Joined: true, ApiserverReady: true, NodeReady: true}}
		if c.when == "at first" {
			cp.sync(report) // the cluster is formed
		}
		report.Kubernetes.ApiserverReady = c.ready
		report.Kubernetes.CertificatesEnd, report.Kubernetes.CertificatesStale = timestamppb.New(end), c.stale
		got := cp.sync(report).GetRun().GetKubernetes().GetRenewBefore()
		if (got != nil) != c.turn {
			t.Errorf("%s: told to renew what ends before %v", c.when, got)
		}
		if fresh := c.left == 365; got != nil && got.AsTime().After(end) == fresh {
			t.Errorf("%s: with %d days left it is to renew what ends before %s", c.when, c.left, got.AsTime())
		}
		notes, want := r.allNotes(), strings.Replace(c.note, "DATE", end.UTC().Format(time.DateOnly), 1)
		if want != "" && !strings.Contains(notes, want) || want == "" && strings.Contains(notes, "certificate") {
			t.Errorf("%s: %s", c.when, notes)
		}
	}
}

// What is due by the server's reckoning is so by the node's, all day long, and each day
// is news once.
func TestWhatIsDueEndsBeforeWhatANodeIsTold(t *testing.T) {
	t.Parallel()
	r := renewal{due: kubeadmRenew, notice: kubeadmNotice, step: 24 * time.Hour}
	day := time.Date(2026, 3, 28, 0, 0, 0, 0, time.UTC)
	seen := map[time.Time]int{}
	for m := range 24 * 60 {
		now := day.Add(time.Duration(m) * time.Minute)
		before := r.before(now)
		seen[before]++
		if due := now.Add(kubeadmRenew); !due.Before(before) {
			t.Fatalf("at %s: what ends at %s is due, and the node renews what ends before %s", now, due, before)
		}
		if made := now.Add(365 * 24 * time.Hour); made.Before(before) {
			t.Fatalf("at %s: a new one is due again", now)
		}
	}
	if len(seen) != 1 {
		t.Errorf("a day has %d of them", len(seen))
	}
}
