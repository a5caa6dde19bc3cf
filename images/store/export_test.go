package store

import (
	"context"
	"time"
)

// SetClock replaces the clock of a store.
func (s *Store) SetClock(now func() time.Time, pause func(context.Context, time.Duration) error) {
	s.now, s.pause = now, pause
}
