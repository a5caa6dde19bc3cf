package serverapi

import (
	"context"
	"net/http"
	"runtime"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// calls counts calls by procedure and outcome. Both are words of the contract:
// what a stranger asks for never becomes one.
type calls struct {
	*prometheus.CounterVec
}

func newCalls() calls {
	return calls{prometheus.NewCounterVec(prometheus.CounterOpts{Name: "imagectl_api_calls_total",
		Help: "Calls over https by procedure or page and outcome: ok, or Connect's error code."}, []string{"procedure", "code"})}
}

func (c calls) count(procedure string, err error) {
	code := "ok"
	if err != nil {
		code = connect.CodeOf(err).String()
	}
	c.WithLabelValues(procedure, code).Inc()
}

// refused counts a call that was turned away before it was looked at.
func (c calls) refused(table map[string]permission, path string, err error) {
	if _, ok := table[path]; !ok {
		path = "other"
	}
	c.count(path, err)
}

// page counts requests for a page when they begin: some last for hours.
func (c calls) page(p Page) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.count(p.Path, nil)
		p.Handler.ServeHTTP(w, r)
	})
}

// WrapUnary implements connect.Interceptor.
func (c calls) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		c.count(req.Spec().Procedure, err)
		return resp, err
	}
}

// WrapStreamingClient implements connect.Interceptor; there are no clients here.
func (c calls) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (c calls) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		err := next(ctx, conn)
		c.count(conn.Spec().Procedure, err)
		return err
	}
}

// Collectors are what this server can say in numbers. Machines appear by name only
// when cluster.yaml lists them.
func (s *Server) Collectors() []prometheus.Collector {
	all := []prometheus.Collector{s.calls, newState(s)}
	if s.snapshots != nil {
		all = append(all, newSnapshotMetrics(s))
	}
	return all
}

// state reads everything when it is asked.
type state struct {
	server *Server

	build, machines, entered, seen, pending, conflicts *prometheus.Desc
	certificate, nodeCertificate, kubeadmCertificate   *prometheus.Desc
	storeSize, storeUsed, storeLimit                   *prometheus.Desc
	ready, coordinates, vip                            *prometheus.Desc
	backupGood, backupSize, backupFailed, backupCopies *prometheus.Desc
}

func newState(s *Server) state {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("imagectl_"+name, help, labels, nil)
	}
	return state{
		server:             s,
		build:              d("build_info", "1; the labels say what runs.", "version", "goversion", "cluster"),
		machines:           d("machines", "Machines by state; listed says whether cluster.yaml names them.", "state", "listed"),
		entered:            d("machine_state_entered_timestamp_seconds", "When a machine came into the state it is in.", "machine", "state"),
		seen:               d("machine_seen_timestamp_seconds", "When a machine's agent last called.", "machine"),
		pending:            d("machines_waiting_for_approval", "Machines whose key waits for an operator."),
		conflicts:          d("machines_with_key_conflict", "Machines that another key than the approved one claims: an alarm."),
		certificate:        d("certificate_expiry_timestamp_seconds", "When a certificate of the server ends.", "certificate"),
		nodeCertificate:    d("node_certificate_expiry_timestamp_seconds", "When the newest certificate of a machine's agent ends.", "machine"),
		kubeadmCertificate: d("kubernetes_certificate_expiry_timestamp_seconds", "When the first certificate ends that kubeadm made on a control plane.", "machine"),
		storeSize:          d("store_size_bytes", "Size of the state's database on the disk."),
		storeUsed:          d("store_used_bytes", "How much of the database holds data."),
		backupGood:         d("backup_good_timestamp_seconds", "When the newest backup was made that was read back to its end; 0 for none."),
		backupSize:         d("backup_good_size_bytes", "How long that backup is."),
		backupFailed:       d("backup_failed", "1 when the newest attempt to make a backup failed."),
		backupCopies:       d("backup_copies", "How many control planes keep a copy of that backup; only where cluster.yaml asks for copies there."),
		ready:              d("ready", "1 while this server can store changes."),
		coordinates:        d("coordinates", "1 on the server that answers nodes and operators; over all servers of a cluster the sum should be 1."),
		vip:                d("kubernetes_api_vip", "1 on the control plane that has an address of kubernetes.apiVIP, 0 with an empty name while none is known to.", "address", "machine"),
		storeLimit:         d("store_limit_bytes", "At this size the database takes no more changes."),
	}
}

// Describe implements prometheus.Collector.
func (c state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.machines, c.entered, c.seen, c.pending, c.conflicts,
		c.certificate, c.nodeCertificate, c.kubeadmCertificate, c.storeSize, c.storeUsed, c.storeLimit, c.ready, c.coordinates, c.vip, c.backupGood, c.backupSize, c.backupFailed, c.backupCopies} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c state) Collect(ch chan<- prometheus.Metric) {
	s := c.server
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.build, 1, s.cfg.Version, runtime.Version(), s.cfg.Cluster)

	listed, others := map[machine.State]int{}, map[machine.State]int{}
	pending, conflicts := 0, 0
	for _, r := range s.cfg.Store.Machines() {
		if n := len(r.Pending); n > 0 {
			pending++
			if r.Key != nil {
				conflicts++
			}
		}
		if !r.Known {
			others[r.State]++
			continue
		}
		listed[r.State]++
		gauge(c.entered, unix(r.Since), r.Name, string(r.State))
		if last, ok := s.board.get(r.Name); ok {
			gauge(c.seen, unix(last.at), r.Name)
			if end := last.last.GetKubernetes().GetCertificatesEnd(); end != nil {
				gauge(c.kubeadmCertificate, unix(end.AsTime()), r.Name)
			}
		}
		if r.Key != nil && !r.Key.NotAfter.IsZero() {
			gauge(c.nodeCertificate, unix(r.Key.NotAfter), r.Name)
		}
	}
	for _, st := range machine.States() {
		gauge(c.machines, float64(listed[st]), string(st), "true")
		if others[st] > 0 {
			gauge(c.machines, float64(others[st]), string(st), "false")
		}
	}
	gauge(c.pending, float64(pending))
	gauge(c.conflicts, float64(conflicts))

	a := s.authority
	for i, ca := range s.trust.Load().trusted {
		gauge(c.certificate, unix(ca.NotAfter), []string{"ca-imagectl", "ca-imagectl-other"}[i])
	}
	gauge(c.certificate, unix(s.etcd.Load().ca.Certificate().NotAfter), "ca-etcd")
	gauge(c.certificate, unix(a.kubernetes.Certificate().NotAfter), "ca-kubernetes")
	gauge(c.certificate, unix(a.frontProxy.Certificate().NotAfter), "ca-front-proxy")
	if end := s.certificateEnd.Load(); end != 0 {
		gauge(c.certificate, float64(end), "server")
	}
	gauge(c.ready, float64(btoi(s.cfg.Store.Healthy() == nil)))
	gauge(c.coordinates, float64(btoi(s.leads() == nil)))
	for _, v := range s.vips() {
		holder, _ := s.vipHolder(v)
		gauge(c.vip, float64(btoi(holder != "")), v, holder)
	}
	disk, used, limit := s.cfg.Store.Size()
	if limit > 0 { // an etcd cluster has metrics of its own
		gauge(c.storeSize, float64(disk))
		gauge(c.storeUsed, float64(used))
		gauge(c.storeLimit, float64(limit))
	}
	if s.cfg.Backups == nil {
		return
	}
	b := s.cfg.Backups.State()
	if b.Dir == "" {
		return
	}
	good := 0.0
	if !b.Good.At.IsZero() {
		good = unix(b.Good.At)
	}
	gauge(c.backupGood, good)
	gauge(c.backupSize, float64(b.Good.Size))
	gauge(c.backupFailed, float64(btoi(b.Failed != nil)))
	if b.Nodes > 0 {
		n := 0
		for _, k := range s.keepers() {
			n += btoi(k.newest.Name == b.Good.Name && b.Good.Name != "")
		}
		gauge(c.backupCopies, float64(n))
	}
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
