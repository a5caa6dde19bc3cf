// Package metrics counts for Prometheus what happens on the boot path. It
// implements boot.Recorder and the meters of the protocol servers; what it
// registers with is passed in.
//
// Labels are bounded: words of ours, machines of cluster.yaml by name, and all
// other machines together as "(unlisted)".
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/funnel"
)

// unlisted stands for every machine that cluster.yaml does not name. No machine
// can have this name.
const unlisted = "(unlisted)"

// Boot counts the boot path. It is safe for concurrent use.
type Boot struct {
	funnel *funnel.Funnel
	// took is the time by stage. What there is by machine comes from the funnel when
	// somebody asks: a counter for each of very many machines is dear to keep.
	took             *prometheus.HistogramVec
	refusals         *prometheus.CounterVec
	reached, current *prometheus.Desc

	dhcp *DHCP
	tftp *TFTP
	http *HTTP
	// syslog counts packets by what became of them.
	syslog *prometheus.CounterVec
}

// New registers everything with reg. f is fed through the Boot from now on.
func New(reg prometheus.Registerer, f *funnel.Funnel) (*Boot, error) {
	b := &Boot{
		funnel:  f,
		reached: prometheus.NewDesc("imagectl_boot_stages_total", "How often a machine came to a stage of its boot.", []string{"machine", "stage"}, nil),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "imagectl_boot_stage_duration_seconds",
			Help:    "Time from the stage before to this one; enrolled includes the wait for an operator.",
			Buckets: []float64{.1, .3, 1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600}}, []string{"stage"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "imagectl_boot_refusals_total",
			Help: "Refusals on the boot path by the stage that was asked for and reason code; imagectl why MAC has the sentence."}, []string{"stage", "code"}),
		current: prometheus.NewDesc("imagectl_boot_stage_entered_timestamp_seconds",
			"When a machine whose boot is under way came to the stage it is in.", []string{"machine", "stage"}, nil),
		dhcp: newDHCP(), tftp: newTFTP(), http: newHTTP(),
		syslog: counter("imagectl_syslog_packets_total", "Packets that machines sent by syslog, by whether they were kept or their sender says too much.", "result"),
	}
	for _, s := range boot.Stages() {
		b.took.WithLabelValues(string(s))
	}
	all := []prometheus.Collector{b.took, b.refusals, b.syslog, b}
	all = append(all, b.dhcp.collectors()...)
	all = append(all, b.tftp.collectors()...)
	all = append(all, b.http.collectors()...)
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Record implements boot.Recorder.
func (b *Boot) Record(e boot.Event) { b.Follow(e) }

// Follow is Record; it tells what the event changed.
func (b *Boot) Follow(e boot.Event) funnel.Step {
	if e.Refusal.Code != "" {
		b.refusals.WithLabelValues(string(e.Stage), e.Refusal.Code).Inc()
	}
	s := b.funnel.Record(e)
	if s.Found.Code != "" {
		b.refusals.WithLabelValues(string(e.Stage), s.Found.Code).Inc()
	}
	if s.Timed {
		b.took.WithLabelValues(string(s.To)).Observe(s.Took.Seconds())
	}
	return s
}

// DHCP is the meter of the DHCP server.
func (b *Boot) DHCP() *DHCP { return b.dhcp }

// TFTP is the meter of the TFTP server.
func (b *Boot) TFTP() *TFTP { return b.tftp }

// HTTP is the meter of the HTTP server.
func (b *Boot) HTTP() *HTTP { return b.http }

// Syslog is the meter of the syslog receiver.
func (b *Boot) Syslog() Syslog { return Syslog{b.syslog} }

// Describe implements prometheus.Collector.
func (b *Boot) Describe(ch chan<- *prometheus.Desc) {
	ch <- b.reached
	ch <- b.current
}

// Collect implements prometheus.Collector: where machines are now, and where they were.
func (b *Boot) Collect(ch chan<- prometheus.Metric) {
	reached := func(machine string, stage boot.Stage, n uint64) {
		ch <- prometheus.MustNewConstMetric(b.reached, prometheus.CounterValue, float64(n), machine, string(stage))
	}
	strangers := b.funnel.Strangers()
	for i, stage := range boot.Stages() {
		reached(unlisted, stage, strangers[i])
	}
	for _, m := range b.funnel.Machines() {
		for i, stage := range boot.Stages() {
			if n := m.Reached[i]; n > 0 {
				reached(m.Name, stage, n)
			}
		}
		if m.Name != "" && m.Boot.Stage != "" && !m.Boot.Over() {
			ch <- prometheus.MustNewConstMetric(b.current, prometheus.GaugeValue, seconds(m.Boot.At), m.Name, string(m.Boot.Stage))
		}
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
