package agent

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/lldp"
)

func TestNeighboursAreReportedWithTheirCards(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := make(chan string)
	heard := lldp.Neighbour{Chassis: "52:54:00:00:00:01", Port: "swp7", System: "leaf", PortDescription: "rack 3", VLAN: 101}
	a := &Agent{Log: slog.New(slog.DiscardHandler), listen: func(ctx context.Context, card string) (lldp.Neighbour, error) {
		if card == "eth1" {
			calls <- card
			return lldp.Neighbour{}, errors.New("operation not permitted")
		}
		return heard, nil
	}}
	done := make(chan struct{})
	go func() { defer close(done); a.hear(ctx, "eth1") }()
	<-calls // it is refused, and not asked for again at once
	a.neighbours.set("eth0", heard)
	facts := a.wireFacts(host.Facts{Interfaces: []host.Interface{{Name: "eth0", MAC: "52:54:00:00:00:07"}, {Name: "eth1"}}})
	n := facts.GetInterfaces()[0].GetNeighbour()
	if n.GetChassis() != heard.Chassis || n.GetPort() != "swp7" || n.GetSystem() != "leaf" || n.GetPortDescription() != "rack 3" || n.GetVlan() != 101 {
		t.Errorf("eth0 is plugged into %v", n)
	}
	if n := facts.GetInterfaces()[1].GetNeighbour(); n != nil {
		t.Errorf("eth1 is plugged into %v", n)
	}
	a.neighbours.forget("eth0")
	if n := a.wireFacts(host.Facts{Interfaces: []host.Interface{{Name: "eth0"}}}).GetInterfaces()[0].GetNeighbour(); n != nil {
		t.Errorf("eth0 is plugged into %v, which is gone", n)
	}
	cancel()
	<-done
}
