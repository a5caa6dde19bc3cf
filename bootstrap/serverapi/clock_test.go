package serverapi

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/store"
)

func TestJudgeClock(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const wrong = "this machine's clock says 2026-03-01T12:00:00Z, and the newest entry of the audit log is of "
	for _, tc := range []struct {
		newest        time.Time
		warning, want string
	}{
		{now, "", ""},
		{now.Add(4 * time.Minute), "", ""},
		{now.Add(6 * time.Minute), "", wrong + "2026-03-01T12:06:00Z: "},
		{now.AddDate(1, 0, 0), "", wrong + "2027-03-01T12:00:00Z: "},
		{now.Add(-29 * 24 * time.Hour), "", ""},
		{now.Add(-31 * 24 * time.Hour), "this machine's clock says 2026-03-01T12:00:00Z, 31 days after the newest entry of the audit log; ", ""},
	} {
		warning, err := judgeClock(now, tc.newest)
		if (tc.want == "") != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.newest, err, tc.want)
		}
		if !strings.HasPrefix(warning, tc.warning) || (warning == "") != (tc.warning == "") {
			t.Errorf("%s: got %q, want %q", tc.newest, warning, tc.warning)
		}
	}
}

// A server whose clock goes back behind what it has written does not start, and writes nothing,
// until somebody says which of the two was wrong. That is said once.
func TestAServerDoesNotStartByAClockBeforeItsLog(t *testing.T) {
	t.Parallel()
	ahead := config(w1())
	ahead.Now = func() time.Time { return time.Now().AddDate(1, 0, 0) }
	var first bytes.Buffer
	empty := config(w1())
	empty.Log = slog.New(slog.NewTextHandler(&first, nil))
	r := start(t, empty)
	if strings.Contains(first.String(), "newest entry") {
		t.Errorf("with no entry it says %s", &first)
	}
	r.restart(ahead)
	r.stop()
	st, err := store.Open(t.Context(), store.Config{Dir: r.dir, Cluster: "demo", Log: new(bytes.Buffer), Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	entries := func() (n int) {
		for _, err := range st.AuditLines(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	before := entries()
	cfg := config(w1())
	cfg.Store = st
	_, err = New(t.Context(), cfg)
	wrong := new(ClockError)
	if !errors.As(err, &wrong) || !strings.HasSuffix(err.Error(), "if it is right now, and was wrong when that entry was written: imagectl serve --clock-is-right") {
		t.Errorf("got %v", err)
	}
	if n := entries(); n != before {
		t.Errorf("what was refused has written %d entries", n-before)
	}
	st.Close()
	cfg.ClockIsRight = true
	r.up(cfg)
	accepted := r.audited("clock-accepted")
	if len(accepted) != 1 || !strings.HasPrefix(accepted[0].Detail, "whoever started the server says that its clock is right now; the entry before this is of ") {
		t.Errorf("the log has %v", accepted)
	}
	said := config(w1())
	said.ClockIsRight = true // left in a unit: there is nothing to accept any more
	for _, cfg := range []Config{said, config(w1())} {
		r.restart(cfg)
		if again := r.audited("clock-accepted"); len(again) != 1 {
			t.Errorf("the log has %v", again)
		}
	}
	var log bytes.Buffer
	late := config(w1())
	late.Log, late.Now = slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return time.Now().Add(40 * 24 * time.Hour) } // some calendar days have 23 hours
	r.restart(late)
	if !strings.Contains(log.String(), "40 days after the newest entry of the audit log") {
		t.Errorf("it says %s", &log)
	}
}

// What a server signed while its clock was a year ahead is not handed out again when it is right.
func TestACertificateFromTheFutureIsNotHandedOutAgain(t *testing.T) {
	t.Parallel()
	ahead := config(w1())
	ahead.Now = func() time.Time { return time.Now().AddDate(1, 0, 0) }
	r := start(t, config(w1()))
	r.restart(ahead)
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	future := f.cert.Leaf
	right := config(w1())
	right.ClockIsRight = true
	r.restart(right)
	if got := f.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED || f.cert.Leaf.Equal(future) || f.cert.Leaf.NotBefore.After(time.Now()) {
		t.Errorf("it gets one that is good from %s: %v", f.cert.Leaf.NotBefore, got)
	}
}
