package serverapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

// listTime bounds the look at where copies of snapshots are.
const listTime = 20 * time.Second

func (s *Server) prepareSnapshots() error {
	if s.cfg.EtcdSnapshots == nil {
		return nil
	}
	c := *s.cfg.EtcdSnapshots
	c.Cluster, c.Program, c.Own, c.Max, c.Now, c.Log = s.cfg.Cluster, s.cfg.Version, s.cfg.Store.OwnIdentity(), nodeapi.SnapshotMax, s.cfg.Now, s.cfg.Log
	var err error
	s.snapshots, err = etcdsnap.New(c, etcdSource{s})
	return err
}

// EtcdSnapshots takes snapshots of the cluster's etcd when they are due, until ctx ends.
func (s *Server) EtcdSnapshots(ctx context.Context) error {
	if s.snapshots == nil {
		<-ctx.Done()
		return nil
	}
	return s.snapshots.Run(ctx)
}

// etcdSource is the cluster as etcdsnap sees it. Whose turn it is is among the choices, which the
// coordinating server alone stores: so it is taken by one server, and not while a member joins,
// leaves or is defragmented.
type etcdSource struct{ *Server }

// Leads implements etcdsnap.Source.
func (s etcdSource) Leads() bool { return s.cfg.Store.Term() != "" }

// Changed implements etcdsnap.Source.
func (s etcdSource) Changed() <-chan struct{} { return s.cfg.Store.TermChanged() }

// Sign implements etcdsnap.Source.
func (s etcdSource) Sign(statement []byte) ([]byte, error) {
	return s.signer().Attest(etcdsnap.Domain, statement)
}

// Forget implements etcdsnap.Source.
func (s etcdSource) Forget(ctx context.Context) error {
	return s.turn(ctx, func(c *change, now coordinator.Choices) (coordinator.Choices, error) {
		if now.EtcdSaving == "" {
			return now, nil
		}
		c.log(audit.Entry{Action: "etcd-snapshot-failed", Machine: now.EtcdSaving, Detail: "the server that took it ended"})
		return coordinator.EndSaving(now), nil
	})
}

// Begin implements etcdsnap.Source.
func (s etcdSource) Begin(ctx context.Context, avoid string) (machine string, err error) {
	if _, _, err := s.decide(ctx); err != nil {
		return "", err
	}
	var absent []string
	for _, m := range s.cfg.Store.Machines() {
		if away(m, s.cfg.Now()) {
			absent = append(absent, m.Name)
		}
	}
	err = s.turn(ctx, func(c *change, now coordinator.Choices) (coordinator.Choices, error) {
		next, why := coordinator.BeginSaving(s.refresh(), now, absent, avoid)
		if why != "" {
			return now, fmt.Errorf("%w: %s", etcdsnap.ErrNotNow, why)
		}
		machine = next.EtcdSaving
		c.log(audit.Entry{Action: "etcd-snapshot-begun", Machine: machine})
		return next, nil
	})
	return machine, err
}

// End implements etcdsnap.Source.
func (s etcdSource) End(ctx context.Context, machine string, m etcdsnap.Manifest, failed error) error {
	return s.turn(ctx, func(c *change, now coordinator.Choices) (coordinator.Choices, error) {
		e := audit.Entry{Action: "etcd-snapshot-saved", Machine: machine, Detail: fmt.Sprintf("%s, revision %d, %d bytes with SHA-256 %s", m.Name, m.Revision, m.Size, m.SHA256)}
		if failed != nil {
			e.Action, e.Detail = "etcd-snapshot-failed", words(failed.Error())
		}
		c.log(e)
		if now.EtcdSaving != machine {
			return now, nil // a restore has taken it away
		}
		return coordinator.EndSaving(now), nil
	})
}

// Checked implements etcdsnap.Source.
func (s etcdSource) Checked(ctx context.Context, m etcdsnap.Manifest, broken error) error {
	return s.coordinate(ctx, s.self(), func(c *change) error {
		e := audit.Entry{Action: "etcd-snapshot-checked", Machine: m.Machine, Detail: m.Name}
		if broken != nil {
			e.Action, e.Detail = "etcd-snapshot-broken", m.Name+": "+words(broken.Error())
		}
		c.log(e)
		return nil
	})
}

// turn changes whose turn it is.
func (s etcdSource) turn(ctx context.Context, f func(*change, coordinator.Choices) (coordinator.Choices, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.takeOver(ctx); err != nil {
		return err
	}
	var stored coordinator.Choices
	err := s.coordinate(ctx, s.self(), func(c *change) error {
		stored = coordinator.Choices{}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		next, err := f(c, stored)
		if err != nil || next.Equal(stored) {
			return err
		}
		stored = next
		return c.tx.PutValue(valueChoices, next)
	})
	if err == nil {
		s.choices = stored
		s.board.wake()
	}
	return err
}

// Open implements etcdsnap.Source.
func (s etcdSource) Open(ctx context.Context, machine string) (etcdsnap.Stream, error) {
	n := &nodes{Server: s.Server}
	address, err := n.nodeAddress(machine)
	if err != nil {
		return nil, err
	}
	t := n.toNode(machine, address)
	client := apiconnect.NewNodeServiceClient(&http.Client{Transport: t}, "https://"+machine)
	in, err := client.EtcdSnapshot(ctx, connect.NewRequest(&api.EtcdSnapshotRequest{Confirmed: true}))
	if err != nil {
		t.CloseIdleConnections()
		return nil, fmt.Errorf("asking %s for a snapshot: %w", machine, err)
	}
	out := &etcdStream{in: in, transport: t}
	if !in.Receive() {
		return nil, errors.Join(fmt.Errorf("asking %s for a snapshot: %w", machine, orEOF(in.Err())), out.Close())
	}
	out.revision, out.member, out.rest = in.Msg().GetRevision(), in.Msg().GetMemberId(), in.Msg().GetChunk()
	return out, nil
}

func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// etcdStream implements etcdsnap.Stream.
type etcdStream struct {
	in        *connect.ServerStreamForClient[api.EtcdSnapshotResponse]
	transport *http.Transport
	revision  int64
	member    string
	rest      []byte
}

func (e *etcdStream) Revision() int64 { return e.revision }
func (e *etcdStream) Member() string  { return words(e.member) }

func (e *etcdStream) Read(b []byte) (int, error) {
	for len(e.rest) == 0 {
		if !e.in.Receive() {
			if err := e.in.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		e.rest = e.in.Msg().GetChunk()
	}
	n := copy(b, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

func (e *etcdStream) Close() error {
	err := e.in.Close()
	e.transport.CloseIdleConnections()
	return err
}

// ListEtcdSnapshots implements apiconnect.OperatorServiceHandler.
func (s operators) ListEtcdSnapshots(ctx context.Context, _ *connect.Request[api.ListEtcdSnapshotsRequest]) (*connect.Response[api.ListEtcdSnapshotsResponse], error) {
	if s.snapshots == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("cluster.yaml has no backup.etcd, so no snapshots of etcd are taken; imagectl etcd snapshot takes one by hand"))
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	all, problems := s.snapshots.List(ctx)
	st := s.snapshots.State()
	resp := &api.ListEtcdSnapshotsResponse{Directory: s.snapshots.Dir(), Bucket: st.Place}
	for _, err := range problems {
		resp.Problems = append(resp.Problems, words(err.Error()))
	}
	for _, l := range all {
		m := l.Manifest
		v := &api.EtcdSnapshotView{Name: l.Name, At: timestamppb.New(l.At), Machine: words(m.Machine), MemberId: words(m.Member), Revision: m.Revision, FileBytes: uint64(l.Size), InDirectory: l.InDirectory, InBucket: l.InCopies}
		if m.Name != "" {
			v.Snapshot = &api.EtcdSnapshot{Sha256: words(m.SHA256), Size: uint64(m.Size)}
		}
		if st.Checked == l.Name {
			v.CheckedAt = timestamppb.New(st.CheckedAt)
		}
		resp.Snapshots = append(resp.Snapshots, v)
	}
	return connect.NewResponse(resp), nil
}

// snapshotAlarms tell that the cluster could not be restored as it should be.
func (s *Server) snapshotAlarms(c coordinator.Choices) []string {
	if s.snapshots == nil || !c.EtcdFormed {
		return nil
	}
	st, p, now := s.snapshots.State(), s.snapshots.Plan(), s.cfg.Now()
	var out []string
	if st.Broken != "" {
		out = append(out, "a snapshot of etcd is broken: "+words(st.Broken)+"; have that member replaced when those of others are whole: imagectl etcd snapshots")
	}
	if !st.Late(p, now) {
		return out
	}
	text := fmt.Sprintf("there is no good snapshot of etcd in %s", s.snapshots.Dir())
	if st.Good.Name != "" {
		text = fmt.Sprintf("the newest good snapshot of etcd is %s old, and one is due every %s", now.Sub(st.Good.At).Round(time.Minute), p.Every)
	}
	switch {
	case st.Failed != nil:
		text += fmt.Sprintf("; the attempt of %s failed: %s", st.FailedAt.UTC().Format(time.RFC3339), words(st.Failed.Error()))
	case st.Waiting != "":
		text += "; " + words(st.Waiting)
	}
	return append(out, text)
}

// snapshotWarnings tell what is no alarm yet.
func (s *Server) snapshotWarnings() []string {
	if s.snapshots == nil {
		return nil
	}
	st := s.snapshots.State()
	var out []string
	if st.Failed != nil && st.Broken == "" {
		out = append(out, fmt.Sprintf("the snapshot of etcd of %s failed: %s", st.FailedAt.UTC().Format(time.RFC3339), words(st.Failed.Error())))
	}
	if st.CheckFailed != nil {
		out = append(out, fmt.Sprintf("the snapshot of etcd %s could not be read page by page: %s", st.Good.Name, words(st.CheckFailed.Error())))
	}
	if st.CopyFailed != nil {
		out = append(out, fmt.Sprintf("no copy of the newest snapshot of etcd is in %s: %s", st.Place, words(st.CopyFailed.Error())))
	}
	return out
}

// snapshotNotes are for "imagectl status".
func (s *Server) snapshotNotes(c coordinator.Choices) []string {
	if s.snapshots == nil {
		if s.cfg.Backups == nil {
			return nil // there is a warning already that nothing is saved
		}
		return []string{"warning: no snapshots of the cluster's etcd are taken by schedule; name backup.etcd in cluster.yaml"}
	}
	var out []string
	for _, a := range s.snapshotAlarms(c) {
		out = append(out, "alarm: "+a)
	}
	for _, w := range s.snapshotWarnings() {
		out = append(out, "warning: "+w)
	}
	st, now := s.snapshots.State(), s.cfg.Now()
	if st.Good.Name == "" {
		return out
	}
	text := fmt.Sprintf("the newest good snapshot of etcd is %s old (%s, of %s, revision %d)", now.Sub(st.Good.At).Round(time.Minute), st.Good.Name, st.Good.Machine, st.Good.Revision)
	if !st.CheckedAt.IsZero() {
		text += fmt.Sprintf("; one was read page by page %s ago", now.Sub(st.CheckedAt).Round(time.Minute))
	}
	out = append(out, text)
	if st.Copied != "" && st.CopyFailed == nil {
		out = append(out, fmt.Sprintf("a copy of one that is %s old is in %s", now.Sub(st.CopiedAt).Round(time.Minute), st.Place))
	}
	return out
}

// snapshotMetrics read everything when they are asked.
type snapshotMetrics struct {
	server                                       *Server
	good, size, revision, failed, failures, late *prometheus.Desc
	checked, broken, copied                      *prometheus.Desc
}

func newSnapshotMetrics(s *Server) snapshotMetrics {
	d := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("imagectl_etcd_snapshot_"+name, help, nil, nil)
	}
	return snapshotMetrics{
		server:   s,
		good:     d("good_timestamp_seconds", "When the newest snapshot of etcd was taken that was read back to its end; 0 for none. On the server that coordinates, as all of these."),
		size:     d("good_size_bytes", "How long that snapshot is, before it is encrypted."),
		revision: d("good_revision", "The revision of etcd that it has at least."),
		failed:   d("failed", "1 when the newest attempt to take one failed."),
		failures: d("failures_total", "Attempts that failed since the server started."),
		late:     d("late", "1 when the newest good one is older than twice its interval: an alarm."),
		checked:  d("checked_timestamp_seconds", "When a snapshot was last read page by page and found whole; 0 for not since the server started."),
		broken:   d("broken", "1 when the last one that was read page by page was broken: an alarm."),
		copied:   d("copied_timestamp_seconds", "When the newest snapshot was taken of which a copy was read back; 0 for none since the server started."),
	}
}

// Describe implements prometheus.Collector.
func (c snapshotMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.good, c.size, c.revision, c.failed, c.failures, c.late, c.checked, c.broken, c.copied} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c snapshotMetrics) Collect(ch chan<- prometheus.Metric) {
	k := c.server.snapshots
	st := k.State()
	c.server.mu.Lock()
	formed := c.server.choices.EtcdFormed
	c.server.mu.Unlock()
	at := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return unix(t)
	}
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	gauge(c.good, at(st.Good.At))
	gauge(c.size, float64(st.Good.Size))
	gauge(c.revision, float64(st.Good.Revision))
	gauge(c.failed, float64(btoi(st.Failed != nil)))
	gauge(c.late, float64(btoi(formed && st.Late(k.Plan(), c.server.cfg.Now()))))
	gauge(c.checked, at(st.CheckedAt))
	gauge(c.broken, float64(btoi(st.Broken != "")))
	gauge(c.copied, at(st.CopiedAt))
	ch <- prometheus.MustNewConstMetric(c.failures, prometheus.CounterValue, float64(st.Total))
}
