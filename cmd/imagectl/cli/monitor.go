package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/imagectl/imagectl/bootstrap/dashboard"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
	"github.com/imagectl/imagectl/pxe/funnel"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/metrics"
	"github.com/imagectl/imagectl/pxe/routes"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/pxe/syslog"
)

// Values of serve's --dashboard.
const (
	dashboardOpen      = "open"
	dashboardOperators = "operators"
	dashboardOff       = "off"
)

// check refuses what would show the inventory to more than it should.
func (f serveFlags) check() error {
	switch f.dashboard {
	case dashboardOpen, dashboardOperators, dashboardOff:
	default:
		return usageError{fmt.Errorf("--dashboard %q is none of open, operators, off", f.dashboard)}
	}
	if (f.tls.certificate == "") != (f.tls.key == "") {
		return usageError{errors.New("--boot-tls-cert and --boot-tls-key belong together: give both or neither")}
	}
	if f.metrics == "" {
		return nil
	}
	at, err := netip.ParseAddrPort(f.metrics)
	if err != nil {
		return usageError{fmt.Errorf("--metrics: %w; give an address and a port, such as 127.0.0.1:9640", err)}
	}
	if !at.Addr().IsLoopback() {
		return usageError{fmt.Errorf("--metrics %s is no loopback address: metrics name the machines; from elsewhere fetch https://SERVER:PORT/metrics with an operator's certificate", at)}
	}
	return nil
}

// monitor is what serve can be watched by: every boot event goes through it.
type monitor struct {
	registry *prometheus.Registry
	journal  server.Journal
	funnel   *funnel.Funnel
	boots    *metrics.Boot
	page     *dashboard.Dashboard
	cluster  string
	// proxy and stateless say that other servers give out the addresses, IPv4 and IPv6.
	proxy, stateless bool
	consoles         syslog.Tails
	// bootTLSEnd is when the certificate of HTTPS boot ends; zero without one.
	bootTLSEnd time.Time
	// api is set before anything is served.
	api *serverapi.Server
}

func newMonitor(p plan.Plan) (*monitor, error) {
	var names []string
	for _, m := range p.Machines {
		names = append(names, m.Name)
	}
	m := &monitor{registry: prometheus.NewRegistry(), funnel: funnel.New(names), cluster: p.Cluster,
		proxy: p.Boot.DHCP != plan.DHCPAuthoritative, stateless: p.Boot.DHCP6.Mode != plan.DHCP6Stateful}
	for _, known := range p.Machines {
		m.journal.Pin(known.MACs)
	}
	var err error
	if m.boots, err = metrics.New(m.registry, m.funnel); err != nil {
		return nil, fmt.Errorf("preparing metrics: %w", err)
	}
	m.page = dashboard.New(dashboard.Config{Look: m.look, Operator: serverapi.MayRead, Now: time.Now})
	return m, nil
}

// watch adds what the https services know.
func (m *monitor) watch(api *serverapi.Server) error {
	m.api = api
	for _, c := range append(api.Collectors(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})) {
		if err := m.registry.Register(c); err != nil {
			return fmt.Errorf("preparing metrics: %w", err)
		}
	}
	return nil
}

// watchBootTLS shows until when the certificate of HTTPS boot is good.
func (m *monitor) watchBootTLS(end time.Time) error {
	m.bootTLSEnd = end
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "imagectl_boot_certificate_expiry_timestamp_seconds", Help: "When the certificate of HTTPS boot (--boot-tls-cert) ends."})
	g.Set(float64(end.Unix()))
	if err := m.registry.Register(g); err != nil {
		return fmt.Errorf("preparing metrics: %w", err)
	}
	return nil
}

// warnOfBootTLS is a task that logs, once a day, that the certificate of HTTPS boot ends.
func (m *monitor) warnOfBootTLS(ctx context.Context, log *slog.Logger) error {
	day := time.NewTicker(24 * time.Hour)
	defer day.Stop()
	for {
		if n := httpboot.EndNotice(m.bootTLSEnd, time.Now()); n != "" {
			log.Warn("certificate of HTTPS boot", "reason", n)
		}
		select {
		case <-day.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Record implements boot.Recorder.
func (m *monitor) Record(e boot.Event) {
	found := m.boots.Follow(e).Found
	m.journal.Record(e)
	if found.Code == "" {
		return
	}
	e.Detail, e.Refusal, e.Offer = found.Reason+" ("+found.Code+")", found, ""
	m.journal.Record(e)
}

// asked takes an answer to an enrolment as the last stage of a boot. Machines ask
// every two seconds, so only news is kept.
func (m *monitor) asked(a serverapi.Asked) {
	e := boot.Event{At: a.At, Stage: boot.StageEnrolled, Name: a.Machine, Detail: a.Reason + " (" + a.Code + ")"}
	var cards []net.HardwareAddr
	for _, text := range a.MACs {
		if mac, err := net.ParseMAC(text); err == nil {
			cards = append(cards, mac)
		}
	}
	if len(cards) > 0 {
		// The funnel knows an unlisted machine by the card that it booted with.
		e.Machine.MAC = cards[max(0, slices.IndexFunc(cards, m.funnel.Follows))]
	}
	switch {
	case a.Waits:
		return
	case !a.Approved:
		e.Refusal = boot.Refusal{Code: a.Code, Reason: a.Reason}
	}
	if !m.boots.Follow(e).News {
		return
	}
	for _, mac := range cards {
		e.Machine.MAC = mac
		m.journal.Record(e)
	}
}

// pages are served on the https port.
func (m *monitor) pages(show string) []serverapi.Page {
	pages := []serverapi.Page{{Path: "/metrics", Handler: m.metrics()}}
	if show == dashboardOff {
		return pages
	}
	handlers := m.page.Handlers()
	for _, path := range slices.Sorted(maps.Keys(handlers)) {
		pages = append(pages, serverapi.Page{Path: path, Handler: handlers[path], Open: show == dashboardOpen})
	}
	return pages
}

func (m *monitor) metrics() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second})
}

// metricsOnly is for the loopback listener.
func (m *monitor) metricsOnly() http.Handler {
	mux := &routes.Mux{}
	mux.Handle("GET /metrics", m.metrics())
	return mux
}

// notices are sentences on what is wrong with the boot network, one for each thing.
func (m *monitor) notices(now time.Time) []string {
	var out []string
	for _, n := range []string{dhcp.Notice(m.proxy, m.boots.DHCP().OtherServers()), dhcp6.Notice(m.stateless, m.boots.DHCP().OtherServers6())} {
		if n != "" {
			out = append(out, n)
		}
	}
	if m.bootTLSEnd.IsZero() {
		return out
	}
	if n := httpboot.EndNotice(m.bootTLSEnd, now); n != "" {
		out = append(out, n)
	}
	return out
}

// look puts together what the parts know about each machine.
func (m *monitor) look() dashboard.View {
	machines, ready, summary := m.api.Look()
	boots := map[string]funnel.Boot{}
	var rows, strangers []dashboard.Machine
	seen := map[string]bool{}
	for _, b := range m.funnel.Machines() {
		if b.Name != "" {
			boots[b.Name] = b.Boot
		} else {
			boots[b.MAC.String()] = b.Boot
		}
	}
	for _, s := range machines {
		row := dashboard.Machine{
			Name: s.Name, Role: s.Role, Zone: s.Zone, State: s.State, Since: s.Since, Seen: s.Seen,
			Reason: s.Reason, Activity: s.Activity, Alarm: s.Conflict,
			Private: &dashboard.Private{MACs: s.MACs, Address: s.Address, Log: m.log(s.MACs), Console: m.console(append([]string{s.Address}, s.MACs...))}, Unlisted: !s.Known,
		}
		if s.Total > 0 {
			row.Percent = int(100 * s.Done / s.Total)
		}
		if s.Known {
			rows = append(rows, with(row, boots[s.Name]))
			continue
		}
		for _, mac := range s.MACs {
			if b, ok := boots[mac]; ok && !seen[mac] {
				row, seen[mac] = with(row, b), true
			}
		}
		strangers = append(strangers, row)
	}
	for _, b := range m.funnel.Machines() {
		if mac := b.MAC.String(); b.Name == "" && !seen[mac] {
			strangers = append(strangers, with(dashboard.Machine{Name: mac, Unlisted: true, Reason: "cluster.yaml does not list it",
				Private: &dashboard.Private{Log: m.log([]string{mac}), Console: m.console([]string{mac})}}, b.Boot))
		}
	}
	return dashboard.View{Cluster: m.cluster, Ready: ready, Summary: summary, Notice: strings.Join(m.notices(time.Now()), "; "), Machines: append(rows, strangers...)}
}

// console is the end of what a machine with these addresses said, oldest first.
func (m *monitor) console(addresses []string) []dashboard.Event {
	const lines = 12
	var out []dashboard.Event
	for _, l := range m.consoles.Tail(lines, addresses...) {
		out = append(out, dashboard.Event{At: l.At, Stage: l.App, Detail: l.Text})
	}
	return out
}

// log is the end of what was seen of a machine with these cards, oldest first.
func (m *monitor) log(macs []string) []dashboard.Event {
	const lines = 8
	var out []dashboard.Event
	for _, text := range macs {
		mac, err := net.ParseMAC(text)
		if err != nil {
			continue
		}
		for _, e := range m.journal.Tail(mac, lines) {
			out = append(out, dashboard.Event{At: e.At, Stage: string(e.Stage), Detail: e.Detail})
		}
	}
	slices.SortStableFunc(out, func(a, b dashboard.Event) int { return a.At.Compare(b.At) })
	return out[max(0, len(out)-lines):]
}

// with adds a machine's newest boot.
func with(row dashboard.Machine, b funnel.Boot) dashboard.Machine {
	row.Stage, row.At, row.Over = string(b.Stage), b.At, b.Over()
	if b.Refusal.Code != "" {
		row.Refusal = &dashboard.Refusal{Code: b.Refusal.Code, Reason: b.Refusal.Reason, At: b.RefusedAt}
	}
	return row
}
