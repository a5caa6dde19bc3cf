package serverapi

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func TestStatusWarnsOfWhatKubeadmMadeForAYear(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	cp := r.approvedMachine("cp1", "52:54:00:00:00:01")
	for _, c := range []struct {
		days int
		want bool
	}{{364, false}, {91, false}, {89, true}, {-1, true}} {
		end := time.Now().Add(time.Duration(c.days) * 24 * time.Hour)
		report := running()
		report.Kubernetes = &api.KubernetesObserved{Joined: true, CertificatesEnd: timestamppb.New(end)}
		cp.sync(report)
		notes := strings.Join(r.notes(), "\n")
		want := "warning: a certificate that kubeadm made on cp1 ends at " + end.UTC().Format(time.DateOnly) + ", and nothing renews it: imagectl machines arm cp1 --reinstall makes others"
		if strings.Contains(notes, want) != c.want {
			t.Errorf("%d days before: %s", c.days, notes)
		}
	}
}
