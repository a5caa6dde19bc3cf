package serverapi

import (
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
)

// Sight is one machine as somebody sees it who only looks.
type Sight struct {
	Name, Role, Zone, State string
	// Known: cluster.yaml lists it.
	Known bool
	// Since is when it came into its state, Seen when its agent last called; zero for
	// never.
	Since, Seen time.Time
	// Reason is one sentence on what it waits for; Activity what its agent does now.
	// Both may be empty.
	Reason, Activity string
	// Done and Total are the bytes of a running installation.
	Done, Total uint64
	// Conflict: another key than the approved one claims it.
	Conflict bool
	// Address and MACs are for those who may read everything.
	Address string
	MACs    []string
}

// Look returns every machine, those of cluster.yaml in its order and then the
// others, and one sentence on the whole. It reads memory only and stores nothing.
func (s *Server) Look() (machines []Sight, ready bool, summary string) {
	nodes, choices := s.overview()
	for _, r := range s.records() {
		m, _ := s.machineOf(r.Name)
		v := Sight{
			Name: r.Name, Role: m.Role, Zone: m.Zone, State: string(r.State), Known: r.Known, Since: r.Since,
			Conflict: r.Key != nil && len(r.Pending) > 0, Address: s.addressOf(r.Name), MACs: m.MACs,
		}
		if last, ok := s.board.get(r.Name); ok {
			v.Seen, v.Done, v.Total = last.at, last.done, last.total
			v.Activity = activityOf(last.last)
		}
		if v.Reason = r.Reason; v.Reason == "" {
			v.Reason = reasonOf(r, nodes, choices)
		}
		if len(v.MACs) == 0 {
			v.MACs = hardware(factsOf(r)).MACs
		}
		machines = append(machines, v)
	}
	ready, summary = coordinator.Summary(nodes, choices)
	return machines, ready, summary
}

// overview is the coordinator's input with the choices made so far. Unlike decide
// it makes none.
func (s *Server) overview() ([]coordinator.Node, coordinator.Choices) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refresh(), s.choices
}

// activityOf is the step that an agent is at, or the one that failed.
func activityOf(r *api.SyncRequest) string {
	for _, step := range r.GetSteps() {
		switch step.GetState() {
		case api.StepStatus_STATE_RUNNING:
			return step.GetName() + ": " + step.GetDetail()
		case api.StepStatus_STATE_FAILED:
			return step.GetName() + " failed: " + step.GetDetail()
		}
	}
	return ""
}
