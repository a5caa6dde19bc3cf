package store

import (
	"context"
	"time"
)

// SetClock replaces the clock of a store.
func (s *Store) SetClock(now func() time.Time, pause func(context.Context, time.Duration) error) {
	s.now, s.pause = now, pause
}

// SetPatience replaces how long a server may be silent: for ever where a test is
// about something else and its machine is slow, an instant where it is not.
func (s *Store) SetPatience(d time.Duration) { s.patience = d }
