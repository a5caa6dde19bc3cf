package cli

import (
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/plan"
)

// The server is told of the times that cluster.yaml has for etcd.
func TestTheServerHearsOfEtcdsTimes(t *testing.T) {
	t.Parallel()
	s := &site{plan: plan.Plan{Etcd: plan.Etcd{Heartbeat: 500 * time.Millisecond, Election: 5 * time.Second}}}
	if got, want := s.serverConfig().Etcd, (serverapi.Etcd{Heartbeat: 500 * time.Millisecond, Election: 5 * time.Second}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
