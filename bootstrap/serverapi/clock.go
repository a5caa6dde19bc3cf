package serverapi

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/imagectl/imagectl/bootstrap/audit"
)

const (
	// clockBehind is how far this machine's clock may be before what the audit log has: clocks of
	// servers that share a store differ by seconds.
	clockBehind = 5 * time.Minute
	// clockAhead is how long after the newest entry a server seldom starts: while one runs, there
	// is an entry every few hours, for the certificates of operators. It is how long a machine's
	// certificate lives.
	clockAhead = 30 * 24 * time.Hour
)

// ClockError says that this machine's clock is before what the audit log has, so that one of
// the two is wrong. Who may know that it is the log says so by Config.ClockIsRight.
type ClockError struct {
	// Now is this machine's time, Newest that of the newest entry.
	Now, Newest time.Time
}

func (e *ClockError) Error() string {
	return fmt.Sprintf("this machine's clock says %s, and the newest entry of the audit log is of %s: with a wrong clock a server signs certificates that nobody can use, refuses machines, and tells new ones the wrong time. Set the clock (timedatectl) and start again; if it is right now, and was wrong when that entry was written: imagectl serve --clock-is-right",
		e.Now.UTC().Format(time.RFC3339), e.Newest.UTC().Format(time.RFC3339))
}

// judgeClock compares this machine's clock with the newest entry of the log; warning is empty
// for nothing.
func judgeClock(now, newest time.Time) (warning string, err error) {
	switch d := now.Sub(newest); {
	case d < -clockBehind:
		return "", &ClockError{Now: now, Newest: newest}
	case d > clockAhead:
		return fmt.Sprintf("this machine's clock says %s, %d days after the newest entry of the audit log; unless no server ran for so long it is wrong, and certificates that are good count as ended: timedatectl",
			now.UTC().Format(time.RFC3339), int(d.Hours()/24)), nil
	}
	return "", nil
}

// checkClock refuses to start by a clock that is before what this server has written itself.
func (s *Server) checkClock(ctx context.Context) error {
	tip, err := s.auditTip(ctx)
	if err != nil || tip.Seq == 0 {
		return err
	}
	var newest time.Time
	for line, err := range s.cfg.Store.AuditLinesAfter(ctx, tip.Seq-1) {
		if err != nil {
			return err
		}
		// Whether the chain is whole, VerifyAudit says; here it is only asked when it was.
		var e struct {
			Entry audit.Entry `json:"entry"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("reading audit entry %d: %w", tip.Seq, err)
		}
		newest = e.Entry.Time
	}
	now := s.cfg.Now()
	warning, err := judgeClock(now, newest)
	if err != nil && s.cfg.ClockIsRight {
		return s.change(ctx, s.self(), func(c *change) error {
			c.log(audit.Entry{Action: "clock-accepted", Detail: fmt.Sprintf("whoever started the server says that its clock is right now; the entry before this is of %s", newest.UTC().Format(time.RFC3339))})
			return nil
		})
	}
	if warning != "" {
		s.cfg.Log.Warn(warning)
	}
	return err
}
