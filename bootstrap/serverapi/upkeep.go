package serverapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// What etcd raises (bootstrap/etcd has these for the node's side).
const (
	alarmNoSpace = "NOSPACE"
	alarmCorrupt = "CORRUPT"
)

// keepingOf is what a member's upkeep hangs on.
func keepingOf(e *api.EtcdObserved) coordinator.Keeping {
	return coordinator.Keeping{
		Fit: e.GetFollows() && !e.GetLearner() && !slices.Contains(e.GetAlarms(), alarmCorrupt), Leader: e.GetLeader(),
		Leaderless: e.GetLeaderless() && !e.GetLearner() && !slices.Contains(e.GetAlarms(), alarmCorrupt),
		Full:       slices.Contains(e.GetAlarms(), alarmNoSpace), Room: e.GetRoom(), Worth: e.GetWorth(), Busy: e.GetTending(), Tended: e.GetTended(),
	}
}

// etcdAlarms are the alarms that any member has told of, with what they mean.
func (s *Server) etcdAlarms(nodes []coordinator.Node) []string {
	by := map[string][]string{}
	for _, n := range nodes {
		if r, ok := s.board.get(n.Name); ok && n.Seen != nil {
			for _, a := range r.last.GetEtcd().GetAlarms() {
				by[a] = append(by[a], n.Name)
			}
		}
	}
	var out []string
	for _, kind := range []string{alarmCorrupt, alarmNoSpace} {
		names := strings.Join(by[kind], ", ")
		switch {
		case names == "":
		case kind == alarmNoSpace:
			out = append(out, fmt.Sprintf("etcd has raised NOSPACE and refuses what makes it grow, say %s: it is compacted and defragmented, one member at a time, and taken back when all have room; imagectl etcd status says how far that is", names))
		default:
			out = append(out, fmt.Sprintf("etcd has raised CORRUPT, say %s: members differ in their data. Nothing is done by itself. Find out which member is wrong (etcd.io/docs, data corruption), take its place with an empty one (imagectl machines arm NAME --reinstall)", names))
		}
	}
	return out
}

// etcdTimes are the keys of cluster.yaml for disks that stay slow, and for members far apart.
const etcdTimes = "etcd.heartbeatInterval and etcd.electionTimeout in cluster.yaml"

// etcdWarnings tell of disks that are too slow for etcd, and of leaders that do not stay.
func (s *Server) etcdWarnings(nodes []coordinator.Node) []string {
	var out []string
	most, by := uint32(0), ""
	for _, n := range nodes {
		r, ok := s.board.get(n.Name)
		if !ok || n.Seen == nil {
			continue
		}
		if seen := r.last.GetEtcd().GetLeaderChanges(); seen > most {
			most, by = seen, n.Name
		}
		if ms := r.last.GetEtcd().GetFsyncP99Ms(); ms > 0 {
			out = append(out, fmt.Sprintf("the disk of %s is slow for etcd: one of a hundred syncs of its log takes %d ms and more, 10 ms are good; where it stays so, leaders need longer times: %s", n.Name, ms, etcdTimes))
		}
		if ms := r.last.GetEtcd().GetCommitP99Ms(); ms > 0 {
			out = append(out, fmt.Sprintf("the disk of %s is slow for etcd: one of a hundred commits of its database takes %d ms and more, 25 ms are good", n.Name, ms))
		}
	}
	if most > 0 {
		out = append(out, fmt.Sprintf("etcd's leader changed %d times within an hour, says %s: disks, processors or the network between the members are too slow for its times; longer ones: %s", most, by, etcdTimes))
	}
	return out
}

// etcdNotes are for "imagectl status".
func (s *Server) etcdNotes(nodes []coordinator.Node) []string {
	var out []string
	for _, a := range s.etcdAlarms(nodes) {
		out = append(out, "alarm: "+a)
	}
	for _, w := range s.etcdWarnings(nodes) {
		out = append(out, "warning: "+w)
	}
	return out
}

// Reason codes of this file.
const (
	codeNoVoter = "no-etcd-voter"
)

// DefragmentEtcd implements apiconnect.OperatorServiceHandler. It stores what is wanted; the
// coordinator does it, under the right that orders all changes of etcd.
func (s operators) DefragmentEtcd(ctx context.Context, req *connect.Request[api.DefragmentEtcdRequest]) (*connect.Response[api.DefragmentEtcdResponse], error) {
	_, choices, err := s.decide(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	names, err := s.selected(req.Msg.GetSelection(), func(m store.Machine) bool {
		return slices.Contains(choices.EtcdVoters, m.Name) && m.State != machine.Retired
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := s.refresh()
	var stored coordinator.Choices
	outcomes := s.each(ctx, names, "its database is defragmented when it is its turn; imagectl etcd status says how far that is", func(c *change, m *store.Machine) error {
		stored = coordinator.Choices{}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		next, why := coordinator.AskTending(nodes, stored, m.Name)
		if why != "" {
			return &refusedError{codeNoVoter, why}
		}
		if next.Equal(stored) {
			return nil // asked before
		}
		stored = next
		c.log(audit.Entry{Action: "etcd-defragmentation-asked", Machine: m.Name})
		return c.tx.PutValue(valueChoices, next)
	})
	for _, o := range outcomes {
		if o.GetOk() {
			s.choices = stored
		}
	}
	s.board.wake()
	return connect.NewResponse(&api.DefragmentEtcdResponse{Outcomes: outcomes}), nil
}
