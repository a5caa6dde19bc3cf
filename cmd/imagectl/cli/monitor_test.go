package cli

import (
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
)

func TestServeShowsTheInventoryToNobodyByMistake(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ metrics, dashboard, want string }{
		{"", "open", ""},
		{"127.0.0.1:9640", "off", ""},
		{"[::1]:9640", "operators", ""},
		{"0.0.0.0:9640", "open", "--metrics 0.0.0.0:9640 is no loopback address: metrics name the machines; from elsewhere fetch https://SERVER:PORT/metrics with an operator's certificate"},
		{":9640", "open", `--metrics: no IP; give an address and a port, such as 127.0.0.1:9640`},
		{"", "public", `--dashboard "public" is none of open, operators, off`},
	} {
		err := serveFlags{metrics: tt.metrics, dashboard: tt.dashboard}.check()
		if got := fmt.Sprint(err); (tt.want == "") != (err == nil) || err != nil && got != tt.want {
			t.Errorf("%+v: got %s", tt, got)
		}
	}
}

// A machine's way from DHCP to its approved key, asked every two seconds.
func TestEnrolmentEndsABoot(t *testing.T) {
	t.Parallel()
	m, err := newMonitor(plan.Plan{Cluster: "demo", Machines: []plan.Machine{{Name: "cp1"}}})
	if err != nil {
		t.Fatal(err)
	}
	cards := []net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	start := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	for i, e := range []boot.Event{
		{Stage: boot.StageDHCP, Firmware: true}, {Stage: boot.StageScript, Action: boot.Install}, {Stage: boot.StageKernel}, {Stage: boot.StageIgnition},
	} {
		e.At, e.Name, e.Machine.MAC = start.Add(time.Duration(i)*time.Second), "cp1", cards[1]
		m.Record(e)
	}
	ask := func(name, code string, approved, waits bool, macs ...string) {
		for range 5 {
			m.asked(serverapi.Asked{At: start.Add(time.Minute), Machine: name, MACs: macs, Approved: approved, Waits: waits, Code: code, Reason: "because " + code})
		}
	}
	both := []string{cards[0].String(), cards[1].String()}
	ask("cp1", "enrol-pending", false, true, both...)
	ask("cp1", "enrol-key-conflict", false, false, both...)
	ask("cp1", "enrol-approved", true, false, both...)
	got := m.funnel.Machines()[0].Boot
	if got.Stage != boot.StageEnrolled || !got.Over() || got.Refusal.Code != "enrol-key-conflict" || !got.At.Equal(start.Add(time.Minute)) {
		t.Errorf("got %+v", got)
	}
	var story strings.Builder
	for _, e := range m.journal.Events(cards[1]) {
		fmt.Fprintf(&story, "%s %s\n", e.Stage, e.Detail)
	}
	want := "dhcp \nscript \nkernel \nignition \nenrolled because enrol-key-conflict (enrol-key-conflict)\nenrolled because enrol-approved (enrol-approved)\n"
	if story.String() != want {
		t.Errorf("imagectl why says\n%swant\n%s", story.String(), want)
	}

	if got := m.log(both); len(got) != 8 || got[0].Stage != "dhcp" || got[7].Detail != "because enrol-approved (enrol-approved)" {
		t.Errorf("the page says %v", got)
	}

	// A machine that cluster.yaml does not name is followed by the card that it
	// booted with, which need not be its first.
	stranger := []string{"02:00:00:00:00:0a", "02:00:00:00:00:0b"}
	m.Record(boot.Event{At: start, Stage: boot.StageDHCP, Machine: boot.Machine{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0xb}}})
	ask("", "enrol-unknown-machine", false, false, stranger...)
	all := m.funnel.Machines()
	if len(all) != 2 || all[1].MAC.String() != stranger[1] || all[1].Boot.Refusal.Code != "enrol-unknown-machine" {
		t.Errorf("got %+v", all)
	}
	ask("", "enrol-no-facts", false, false)
	ask("", "enrol-no-facts", false, false, "no address")
}

// Another DHCP server on the boot network is told to operators, and on the page without
// its address.
func TestAnotherServerIsShown(t *testing.T) {
	t.Parallel()
	m, err := newMonitor(plan.Plan{Cluster: "demo", Boot: plan.Boot{DHCP: plan.DHCPAuthoritative}})
	if err != nil {
		t.Fatal(err)
	}
	path := &bootPath{notices: m.notices}
	if got := path.Notices(); len(got) != 0 {
		t.Errorf("before there is one: %v", got)
	}
	m.boots.DHCP().Others(func() []dhcp.Other {
		return []dhcp.Other{{Server: netip.MustParseAddr("10.0.0.9"), Last: time.Unix(0, 0), MAC: dhcp.MAC{2, 0, 0, 0, 0, 1}}}
	})
	if got := path.Notices(); len(got) != 1 || !strings.Contains(got[0], "10.0.0.9 (last taken by 02:00:00:00:00:01 at 1970-01-01 00:00:00 UTC)") {
		t.Errorf("status says %v", got)
	}
	m.boots.DHCP().Others6(func() []dhcp6.Other {
		return []dhcp6.Other{{Server: "00:03:00:01:02:00:00:00:00:09", Last: time.Unix(0, 0), Client: "02:00:00:00:00:01"}}
	})
	// Without boot.dhcp6 nobody asks us, and one server is as it should be.
	if got := path.Notices(); len(got) != 1 {
		t.Errorf("beside a DHCPv6 server status says %v", got)
	}
	m.stateless = false
	if got := path.Notices(); len(got) != 2 || !strings.HasPrefix(got[1], "another DHCPv6 server gives out addresses on the boot network: DUID 00:03:00:01:02:00:00:00:00:09 of the card 02:00:00:00:00:09") {
		t.Errorf("status says %v", got)
	}
	w := httptest.NewRecorder()
	m.metricsOnly().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`imagectl_dhcp_other_server_seen_timestamp_seconds{server="10.0.0.9"} 0`, `imagectl_dhcp_other_server_seen_timestamp_seconds{server="00:03:00:01:02:00:00:00:00:09"} 0`} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("metrics have no %s", want)
		}
	}
}

// A machine that is offered an address again and again has a reason, wherever one looks.
func TestOffersThatNobodyTakesAreShown(t *testing.T) {
	t.Parallel()
	m, err := newMonitor(plan.Plan{Cluster: "demo", Machines: []plan.Machine{{Name: "cp1"}}})
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	start := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	for _, second := range []int{0, 4, 12, 28} {
		m.Record(boot.Event{At: start.Add(time.Duration(second) * time.Second), Machine: boot.Machine{MAC: mac}, Name: "cp1", Stage: boot.StageDHCP, Firmware: true, Offer: boot.OfferProgram, Detail: "offered no address, another server does"})
	}
	const want = "it was offered a boot program 4 times and has asked nobody for an address"
	last, ok := (&bootPath{journal: &m.journal}).Last([]string{mac.String()})
	if !ok || !strings.HasPrefix(last.Detail, want) || !strings.HasSuffix(last.Detail, "(no-request)") {
		t.Errorf("status and why say %+v", last)
	}
	if got := m.funnel.Machines()[0].Boot.Refusal; got.Code != "no-request" || !strings.HasPrefix(got.Reason, want) {
		t.Errorf("the page says %+v", got)
	}
	w := httptest.NewRecorder()
	m.metricsOnly().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if want := `imagectl_boot_refusals_total{code="no-request",stage="dhcp"} 1`; !strings.Contains(w.Body.String(), want) {
		t.Errorf("metrics have no %s", want)
	}
}

// The certificate of HTTPS boot is told of while the server runs.
func TestTheEndOfTheBootCertificateIsShown(t *testing.T) {
	t.Parallel()
	m, err := newMonitor(plan.Plan{Cluster: "demo", Boot: plan.Boot{DHCP: plan.DHCPAuthoritative}})
	if err != nil {
		t.Fatal(err)
	}
	end := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	if got := m.notices(end.Add(time.Hour)); got != nil {
		t.Errorf("without HTTPS boot: %v", got)
	}
	if err := m.watchBootTLS(end); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now  time.Time
		want string
	}{
		{end.Add(-15 * 24 * time.Hour), "[]"},
		{end.Add(-13*24*time.Hour - time.Hour), "[the certificate of --boot-tls-cert ends at 2026-12-01 12:00:00 UTC, in 13 days; then firmware does not boot by HTTPS any more: make another one of the same CA, and start imagectl serve again with it (docs/netboot.md)]"},
		{end, "[the certificate of --boot-tls-cert ended at 2026-12-01 12:00:00 UTC: firmware that looks at its clock does not boot by HTTPS any more; make another one of the same CA, and start imagectl serve again with it (docs/netboot.md)]"},
	} {
		if got := fmt.Sprint(m.notices(c.now)); got != c.want {
			t.Errorf("%s before its end:\ngot  %s\nwant %s", end.Sub(c.now), got, c.want)
		}
	}
	want := "# HELP imagectl_boot_certificate_expiry_timestamp_seconds When the certificate of HTTPS boot (--boot-tls-cert) ends.\n" +
		"# TYPE imagectl_boot_certificate_expiry_timestamp_seconds gauge\nimagectl_boot_certificate_expiry_timestamp_seconds 1.7961264e+09\n"
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), "imagectl_boot_certificate_expiry_timestamp_seconds"); err != nil {
		t.Error(err)
	}
}

// What /metrics says is read by Prometheus' own parser.
func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	m, err := newMonitor(plan.Plan{Cluster: "demo", Machines: []plan.Machine{{Name: "cp1"}}})
	if err != nil {
		t.Fatal(err)
	}
	m.Record(boot.Event{At: time.Now(), Stage: boot.StageDHCP, Name: "cp1"})
	w := httptest.NewRecorder()
	m.metricsOnly().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil || families["imagectl_boot_stage_entered_timestamp_seconds"] == nil {
		t.Errorf("%d families, %v", len(families), err)
	}
	if problems, err := testutil.GatherAndLint(m.registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	w = httptest.NewRecorder()
	m.metricsOnly().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 404 {
		t.Errorf("/ on the metrics port: %d", w.Code)
	}
}
