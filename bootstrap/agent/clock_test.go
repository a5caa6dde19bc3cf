package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// leafAt is a certificate that was issued at a time, as the server does.
func leafAt(issued time.Time) *x509.Certificate {
	return &x509.Certificate{NotBefore: issued.Add(-backdate), NotAfter: issued.Add(30 * 24 * time.Hour)}
}

// The whole table of whose clock is believed.
func TestWhoseClockIsBelieved(t *testing.T) {
	t.Parallel()
	const day, year = 24 * time.Hour, 365 * 24 * time.Hour
	const good = "our certificate is good from 2026-02-17T12:00:00Z to 2026-03-21T12:00:00Z"
	leaf := leafAt(noon.Add(-10 * day))
	for _, row := range []struct {
		name   string
		clocks twoClocks
		// ahead is by how much the server's is ahead of noon, ours by how much ours is.
		ahead, ours time.Duration
		take        bool
		refused     string
	}{
		{"a few seconds", twoClocks{leaf: leaf}, 30 * time.Second, 0, false, ""},
		{"a few seconds back", twoClocks{leaf: leaf}, -30 * time.Second, 0, false, ""},
		{"two minutes", twoClocks{leaf: leaf}, 2 * time.Minute, 0, true, ""},
		{"two minutes back", twoClocks{leaf: leaf}, -2 * time.Minute, 0, true, ""},
		{"an answer as old as the call", twoClocks{leaf: leaf, took: 2 * time.Minute}, -2 * time.Minute, 0, false, ""},
		{"an answer older than the call", twoClocks{leaf: leaf, took: 2 * time.Minute}, -4 * time.Minute, 0, true, ""},
		{"what the server says can only be too early", twoClocks{leaf: leaf, took: 2 * time.Minute}, 2 * time.Minute, 0, true, ""},
		{"the first boot, with a dead battery", twoClocks{}, 0, -56 * year, true, ""},
		{"the first boot, with a battery that is 56 years ahead", twoClocks{battery: true}, 0, 56 * year, true, ""},
		{"the first boot, with NTP", twoClocks{byNTP: true}, 2 * time.Minute, 0, false, "NTP keeps our clock"},
		{"a dead battery", twoClocks{leaf: leaf}, 0, -56 * year, true, ""},
		{"a dead battery, after the clock was right", twoClocks{leaf: leaf, confirmed: true}, 0, -56 * year, true, ""},
		{"our clock a day ahead", twoClocks{leaf: leaf, confirmed: true, battery: true}, 0, day, true, ""},
		{"our clock a day back", twoClocks{leaf: leaf, confirmed: true, battery: true}, 0, -day, true, ""},
		{"NTP, and the server is a day ahead", twoClocks{leaf: leaf, byNTP: true}, day, 0, false, "NTP keeps our clock"},
		{"NTP, and ours is out of our certificate's time", twoClocks{leaf: leaf, byNTP: true}, 0, year, false, "NTP keeps our clock"},
		{"the server a year ahead, a node that runs", twoClocks{leaf: leaf, confirmed: true}, year, 0, false, good + ", and our clock was right since this agent was started"},
		{"the server a year ahead, a node with a battery", twoClocks{leaf: leaf, battery: true}, year, 0, false, good + ", and the machine's battery-backed clock says what ours says"},
		{"the server in 1970, a node that runs", twoClocks{leaf: leaf, confirmed: true}, -56 * year, 0, false, good + ", and our clock was right since this agent was started"},
		{"it slept past the end of its certificate, and has no battery", twoClocks{leaf: leaf}, 60 * day, 0, true, ""},
		{"it slept, and neither time is in its certificate's", twoClocks{leaf: leaf, battery: true}, 62 * day, 60 * day, true, ""},
		{"it slept, and has a battery", twoClocks{leaf: leaf, battery: true}, 60 * day, 60 * day, false, ""},
	} {
		c := row.clocks
		c.ours, c.server = noon.Add(row.ours), noon.Add(row.ahead)
		if take, refused := c.decide(); take != row.take || refused != row.refused {
			t.Errorf("%s: got %v, %q; want %v, %q", row.name, take, refused, row.take, row.refused)
		}
	}
}

// What a node has learnt since it was started speaks for its clock.
func TestAClockThatWasRightStays(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	for name, tc := range map[string]struct {
		before func(*Agent)
		takes  bool
	}{
		"nothing speaks for it":                {func(*Agent) {}, true},
		"a server agreed":                      {func(a *Agent) { a.setClock(timestamppb.New(noon), 0) }, false},
		"a server was a minute and a half off": {func(a *Agent) { a.setClock(timestamppb.New(noon.Add(90*time.Second)), 0) }, false},
		"NTP kept it for a while":              {func(a *Agent) { a.keptByNTP = ntpOnce(a) }, false},
		"NTP keeps it":                         {func(a *Agent) { a.keptByNTP = func() bool { return true } }, false},
		"its battery":                          {func(a *Agent) { battery(t, a, noon) }, false},
		"its battery is dead":                  {func(a *Agent) { battery(t, a, time.Unix(946684800, 0)) }, true},
	} {
		var log bytes.Buffer
		a := &Agent{Host: hosttest.New(t).Host, Log: slog.New(slog.NewTextHandler(&log, nil)), Now: func() time.Time { return noon }, id: &identity{leaf: leafAt(noon.Add(-24 * time.Hour))}}
		tc.before(a)
		log.Reset()
		refused := a.setClock(timestamppb.New(noon.Add(year)), 0)
		if took := strings.Contains(log.String(), "taking the server's time"); took != tc.takes || (refused == "") != tc.takes {
			t.Errorf("%s: taken %v, refused %q; want taken %v\n%s", name, took, refused, tc.takes, &log)
		}
		log.Reset()
		if a.setClock(timestamppb.New(noon.Add(year)), 0); !tc.takes && log.Len() > 0 {
			t.Errorf("%s: it says so with every call: %s", name, &log)
		}
	}
}

// ntpOnce says yes to the first who asks, while the server is a day ahead: that NTP kept it is all
// that speaks for the clock then.
func ntpOnce(a *Agent) func() bool {
	a.keptByNTP = func() bool { return true }
	a.setClock(timestamppb.New(noon.Add(24*time.Hour)), 0)
	return func() bool { return false }
}

// That the server's time is refused is said once an hour by our clock, also when that went back
// meanwhile; what is no time is not looked at.
func TestARefusedTimeIsSaidOnceAnHour(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	now := noon
	a := &Agent{Host: hosttest.New(t).Host, Log: slog.New(slog.NewTextHandler(&log, nil)), Now: func() time.Time { return now }, id: &identity{leaf: leafAt(noon.Add(-24 * time.Hour))}}
	a.setClock(timestamppb.New(noon), 0)
	for _, step := range []struct {
		at   time.Duration
		said bool
	}{{0, true}, {59 * time.Minute, false}, {time.Hour, true}, {90 * time.Minute, false}, {-24 * time.Hour, true}, {-24 * time.Hour, false}} {
		log.Reset()
		now = noon.Add(step.at)
		if refused := a.setClock(timestamppb.New(noon.AddDate(1, 0, 0)), 0); refused == "" || (log.Len() > 0) != step.said {
			t.Errorf("at %s: refused %q, want it said: %v\n%s", step.at, refused, step.said, &log)
		}
	}
	log.Reset()
	if refused := a.setClock(&timestamppb.Timestamp{Seconds: 1 << 60}, 0); refused != "" || log.Len() > 0 {
		t.Errorf("refused %q\n%s", refused, &log)
	}
}

func battery(t *testing.T, a *Agent, at time.Time) {
	t.Helper()
	if err := a.Host.WriteFile("/sys/class/rtc/rtc0/since_epoch", fmt.Appendf(nil, "%d\n", at.Unix()), 0o444); err != nil {
		t.Fatal(err)
	}
}

// The server's clock goes far ahead: it refuses the node's certificate as one that has ended,
// and gives another, from the future. The node keeps its clock and its certificate, says why, and
// is back as soon as the server has the time.
func TestAServerWithAWrongClockTakesNobodyAlong(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	stop := l.start(nodeconf.Installer)
	l.wait("the first report", func(*api.SyncRequest) bool { return true })
	stop()
	old, enrols := l.read(CertPath), 0
	l.set(func() { l.now, enrols = 200*24*time.Hour, l.enrols })
	a := l.agent(nodeconf.Installer)
	a.Now = time.Now // the machine's
	battery(t, a, time.Now())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	waitFor(l, "two more enrolments", func() (int, bool) { return l.enrols, l.enrols >= enrols+2 })
	if l.read(CertPath) != old {
		t.Error("it took a certificate from the future")
	}
	if log := l.log.String(); strings.Contains(log, "taking the server's time") || !strings.Contains(log, "the server's clock is not ours; ours stays") {
		t.Errorf("it says:\n%s", log)
	}
	if console := l.read("/dev/console"); !strings.Contains(console, "one of the two clocks is wrong, and has to be set; ours stays: our certificate is good from ") {
		t.Errorf("the console says:\n%s", console)
	}
	l.set(func() { l.now = 0 })
	l.wait("a report, when the server has the time", func(*api.SyncRequest) bool { return true })
}

// Not only enrolment tells the time: a machine that is enrolled hears it with each answer to a report.
func TestAnAnswerToAReportTellsTheTime(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.direct(&api.SyncResponse{ServerTime: timestamppb.New(l.clock().Add(time.Hour)), Directive: &api.SyncResponse_Wait{Wait: &api.Wait{ReasonCode: "not-armed", Reason: "nobody armed it"}}})
	l.start(nodeconf.Installer)
	waitFor(l, "the server's time to be taken", func() (struct{}, bool) {
		return struct{}{}, strings.Contains(l.log.String(), "our clock is wrong; taking the server's time")
	})
}

// Certificates that a node asks for are not taken from the future either: they would take the
// place of good ones.
func TestCertificatesFromTheFutureAreNotTaken(t *testing.T) {
	t.Parallel()
	err := notGood(leafAt(noon.AddDate(1, 0, 0)), noon)
	want := "the server's certificate is good from 2027-02-27T12:00:00Z to 2027-03-31T12:00:00Z and our clock says 2026-03-01T12:00:00Z: one of the two clocks is wrong, and has to be set"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	l := newLab(t)
	n := l.newNode()
	if _, err := n.issue(t.Context(), []api.CertificateProfile{api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER}); err != nil {
		t.Fatal(err)
	}
	n.Now = func() time.Time { return time.Now().Add(-365 * 24 * time.Hour) }
	if _, err := n.issue(t.Context(), []api.CertificateProfile{api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER}); err == nil || !strings.Contains(err.Error(), "one of the two clocks is wrong") {
		t.Errorf("got %v", err)
	}
	if err := n.renew(t.Context()); err == nil || !strings.Contains(err.Error(), "renewing our certificate: the server's certificate is good from ") {
		t.Errorf("got %v", err)
	}
}
