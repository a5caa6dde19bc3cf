package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"regexp"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Status is what a member says about itself.
type Status struct {
	// MemberID in hexadecimal as etcdctl prints it.
	MemberID string
	Learner  bool
	// Healthy: it follows a leader and has raised no alarm.
	Healthy bool
	// Reason is why it is not healthy; one sentence.
	Reason string
	// Follows: it follows a leader and answers a read of its own data, whatever alarms there
	// are. One that is being defragmented does not. Leader: it leads.
	Follows, Leader bool
	// Leaderless: it sees no leader.
	Leaderless bool
	// Alarms are all that it knows of, also those of other members.
	Alarms  []Alarm
	Storage Storage
	// Members is the list as this member knows it; empty from a learner, which does
	// not tell. Nobody was asked how they are.
	Members []Peer
}

// Ask asks the member at endpoint, not the cluster: it works for a learner and
// without a quorum. ctx bounds it.
func Ask(ctx context.Context, endpoint string, conf *tls.Config) (Status, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: conf, Context: ctx, Logger: zap.NewNop()})
	if err != nil {
		return Status{}, fmt.Errorf("asking etcd at %s: %w", endpoint, err)
	}
	defer c.Close()
	r, err := c.Status(ctx, endpoint)
	if err != nil {
		return Status{}, fmt.Errorf("asking etcd at %s: %w", endpoint, err)
	}
	s := Status{
		MemberID: strconv.FormatUint(r.Header.GetMemberId(), 16), Learner: r.IsLearner,
		Leader: r.Leader != 0 && r.Leader == r.Header.GetMemberId(), Leaderless: r.Leader == 0, Alarms: alarmsIn(r.Errors),
		// Members before etcd 3.6 do not tell their quota; it is what we gave them.
		Storage: Storage{Size: r.DbSize, Used: r.DbSizeInUse, Quota: cmp.Or(r.DbSizeQuota, QuotaBytes)},
	}
	if r.Leader != 0 {
		// Status needs none of the locks that a defragmentation holds; a read does.
		_, err := c.Get(ctx, "imagectl", clientv3.WithSerializable(), clientv3.WithCountOnly())
		s.Follows = err == nil
	}
	switch {
	case r.Leader == 0:
		s.Reason = "it sees no leader"
	case len(s.Alarms) > 0:
		s.Reason = "etcd has raised " + s.Alarms[0].Kind
	case len(r.Errors) > 0:
		s.Reason = fmt.Sprintf("it says %q", r.Errors)
	default:
		s.Healthy = true
	}
	if !s.Learner {
		if r, err := c.MemberList(ctx, clientv3.WithSerializable()); err == nil {
			s.Members = peers(r)
		}
	}
	return s, nil
}

// alarmRE matches how a member writes an alarm (AlarmMember.String): protobuf's text, whose
// blanks are not fixed.
var alarmRE = regexp.MustCompile(`memberID:\s*(\d+)\s+alarm:\s*([A-Z]+)`)

// alarmsIn are the alarms among what a member says is wrong. Asking for the list itself takes
// a quorum and an entry in etcd's log each time.
func alarmsIn(errors []string) []Alarm {
	var out []Alarm
	for _, e := range errors {
		if m := alarmRE.FindStringSubmatch(e); m != nil {
			if id, err := strconv.ParseUint(m[1], 10, 64); err == nil {
				out = append(out, Alarm{m[2], id})
			}
		}
	}
	return out
}
