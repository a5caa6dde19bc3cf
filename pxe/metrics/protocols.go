package metrics

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
)

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

// DHCP implements dhcp.Meter.
type DHCP struct {
	requests *prometheus.CounterVec
	// known are requests' counters: to look one up there is dear for every packet.
	mu             sync.Mutex
	known          map[[2]string]prometheus.Counter
	received, sent prometheus.Counter
	replies        prometheus.Counter
	waiting        prometheus.Gauge
	// usage is nil until there is a server.
	usage                  atomic.Pointer[func() []dhcp.Usage]
	pool, leased, reserved *prometheus.Desc
	// line is nil where nobody has to wait for admission.
	line           atomic.Pointer[func() admit.Usage]
	admitted, rate *prometheus.Desc
	// others is nil until there is a server.
	others  atomic.Pointer[func() []dhcp.Other]
	others6 atomic.Pointer[func() []dhcp6.Other]
	other   *prometheus.Desc
}

func newDHCP() *DHCP {
	subnet := []string{"subnet"}
	return &DHCP{
		known:    map[[2]string]prometheus.Counter{},
		requests: counter("imagectl_dhcp_requests_total", "DHCP packets received, by message type and the code of the decision.", "type", "code"),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "imagectl_dhcp_received_bytes_total", Help: "Bytes of DHCP packets received."}),
		sent:     prometheus.NewCounter(prometheus.CounterOpts{Name: "imagectl_dhcp_sent_bytes_total", Help: "Bytes of DHCP replies sent."}),
		replies:  prometheus.NewCounter(prometheus.CounterOpts{Name: "imagectl_dhcp_replies_total", Help: "DHCP replies sent."}),
		waiting:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "imagectl_dhcp_requests_in_flight", Help: "DHCP answers that wait until their lease is on the disk."}),
		pool:     prometheus.NewDesc("imagectl_dhcp_pool_addresses", "Size of the dynamic range of a subnet.", subnet, nil),
		leased:   prometheus.NewDesc("imagectl_dhcp_pool_leases", "Addresses of the dynamic range that are given out, offered or resting.", subnet, nil),
		reserved: prometheus.NewDesc("imagectl_dhcp_reserved_leases", "Reserved addresses that their machine holds.", subnet, nil),
		admitted: prometheus.NewDesc("imagectl_boot_admitted_machines", "Machines that were offered an address and have no boot program yet.", nil, nil),
		rate:     prometheus.NewDesc("imagectl_boot_admission_rate", "Boot programs a second that are taken to be possible; machines above it are told by silence to ask again.", nil, nil),
		other:    prometheus.NewDesc("imagectl_dhcp_other_server_seen_timestamp_seconds", "When a client last chose another DHCP server, for those of the last hour, by address, or by DUID in DHCPv6.", []string{"server"}, nil),
	}
}

func (d *DHCP) collectors() []prometheus.Collector {
	return []prometheus.Collector{d.requests, d.received, d.sent, d.replies, d.waiting, d}
}

// Received implements dhcp.Meter.
func (d *DHCP) Received(kind, code string, bytes int) {
	labels := [2]string{kind, code}
	d.mu.Lock()
	c, ok := d.known[labels]
	if !ok {
		c = d.requests.WithLabelValues(kind, code)
		d.known[labels] = c
	}
	d.mu.Unlock()
	c.Inc()
	d.received.Add(float64(bytes))
}

// Sent implements dhcp.Meter.
func (d *DHCP) Sent(replies, bytes int) {
	d.replies.Add(float64(replies))
	d.sent.Add(float64(bytes))
}

// Waiting implements dhcp.Meter.
func (d *DHCP) Waiting(more int) { d.waiting.Add(float64(more)) }

// Pools implements dhcp.Meter.
func (d *DHCP) Pools(usage func() []dhcp.Usage) { d.usage.Store(&usage) }

// Line implements dhcp.Meter.
func (d *DHCP) Line(usage func() admit.Usage) { d.line.Store(&usage) }

// Others implements dhcp.Meter.
func (d *DHCP) Others(others func() []dhcp.Other) { d.others.Store(&others) }

// OtherServers are those that clients chose in the last hour.
func (d *DHCP) OtherServers() []dhcp.Other {
	if others := d.others.Load(); others != nil {
		return (*others)()
	}
	return nil
}

// Others6 implements dhcp6.Meter.
func (d *DHCP) Others6(others func() []dhcp6.Other) { d.others6.Store(&others) }

// OtherServers6 are those of DHCPv6 that clients chose in the last hour.
func (d *DHCP) OtherServers6() []dhcp6.Other {
	if others := d.others6.Load(); others != nil {
		return (*others)()
	}
	return nil
}

// Describe implements prometheus.Collector.
func (d *DHCP) Describe(ch chan<- *prometheus.Desc) {
	ch <- d.other
	ch <- d.admitted
	ch <- d.rate
	ch <- d.pool
	ch <- d.leased
	ch <- d.reserved
}

// Collect implements prometheus.Collector.
func (d *DHCP) Collect(ch chan<- prometheus.Metric) {
	for _, o := range d.OtherServers() {
		ch <- prometheus.MustNewConstMetric(d.other, prometheus.GaugeValue, seconds(o.Last), o.Server.String())
	}
	for _, o := range d.OtherServers6() {
		ch <- prometheus.MustNewConstMetric(d.other, prometheus.GaugeValue, seconds(o.Last), o.Server)
	}
	if line := d.line.Load(); line != nil {
		u := (*line)()
		ch <- prometheus.MustNewConstMetric(d.admitted, prometheus.GaugeValue, float64(u.Admitted))
		ch <- prometheus.MustNewConstMetric(d.rate, prometheus.GaugeValue, u.Rate)
	}
	usage := d.usage.Load()
	if usage == nil {
		return
	}
	for _, u := range (*usage)() {
		for _, m := range []struct {
			desc  *prometheus.Desc
			value int
		}{{d.pool, u.Pool}, {d.leased, u.Leased}, {d.reserved, u.Reserved}} {
			ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, float64(m.value), u.Subnet.String())
		}
	}
}

// TFTP implements tftp.Meter.
type TFTP struct {
	running   prometheus.Gauge
	transfers *prometheus.CounterVec
	sent      prometheus.Counter
}

func newTFTP() *TFTP {
	return &TFTP{
		running:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "imagectl_tftp_transfers_in_flight", Help: "TFTP transfers that run."}),
		transfers: counter("imagectl_tftp_transfers_total", "TFTP transfers that ended, whole or not: UEFI ends its first one once it knows the size.", "file", "whole"),
		sent:      prometheus.NewCounter(prometheus.CounterOpts{Name: "imagectl_tftp_sent_bytes_total", Help: "Bytes of files sent by TFTP."}),
	}
}

func (t *TFTP) collectors() []prometheus.Collector {
	return []prometheus.Collector{t.running, t.transfers, t.sent}
}

// Begun implements tftp.Meter.
func (t *TFTP) Begun() { t.running.Inc() }

// Ended implements tftp.Meter.
func (t *TFTP) Ended(file string, sent int64, whole bool) {
	t.running.Dec()
	t.transfers.WithLabelValues(file, strconv.FormatBool(whole)).Inc()
	t.sent.Add(float64(sent))
}

// HTTP implements httpboot.Meter.
type HTTP struct {
	running  *prometheus.GaugeVec
	requests *prometheus.CounterVec
	sent     *prometheus.CounterVec
}

func newHTTP() *HTTP {
	return &HTTP{
		running:  gauge("imagectl_http_requests_in_flight", "HTTP requests that are being answered.", "route"),
		requests: counter("imagectl_http_requests_total", "HTTP requests of booting machines that were answered.", "route", "status"),
		sent:     counter("imagectl_http_sent_bytes_total", "Bytes of bodies sent by HTTP; a transfer counts when it ends.", "route"),
	}
}

func (h *HTTP) collectors() []prometheus.Collector {
	return []prometheus.Collector{h.running, h.requests, h.sent}
}

// Begun implements httpboot.Meter.
func (h *HTTP) Begun(route string) { h.running.WithLabelValues(route).Inc() }

// Ended implements httpboot.Meter.
func (h *HTTP) Ended(route string, status int, sent int64) {
	h.running.WithLabelValues(route).Dec()
	h.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	h.sent.WithLabelValues(route).Add(float64(sent))
}

// Syslog implements syslog.Meter.
type Syslog struct{ packets *prometheus.CounterVec }

// Heard implements syslog.Meter.
func (s Syslog) Heard() { s.packets.WithLabelValues("kept").Inc() }

// Dropped implements syslog.Meter.
func (s Syslog) Dropped() { s.packets.WithLabelValues("dropped").Inc() }
