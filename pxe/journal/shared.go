package journal

import (
	"context"
	"errors"
)

// Shared is where several servers of one network keep records of what they give away,
// each writing at the same time as the others.
type Shared[R any] interface {
	// Load has what was kept.
	Load() ([]R, error)
	// Append returns when the records, in their order, are durable; a TakenError when
	// some are not.
	Append([]R) error
	// Follow tells of every change, those of this server included, in their order, until
	// ctx ends. A record whose time is zero is gone.
	Follow(ctx context.Context, changed func([]R)) error
	// Ready is nil while the records can be trusted to be nearly current.
	Ready() error
}

// TakenError is what Append of a Shared returns when it kept all but some records, since
// another server gave what they are about to somebody else.
type TakenError[R any] struct {
	// Lost are the indexes of those that were not kept.
	Lost map[int]bool
	// Now are the records in their place as they are.
	Now []R
}

// Error implements error.
func (e *TakenError[R]) Error() string { return "another server gave the addresses to other machines" }

// Yield sorts a batch of Commit by what became of it: lost had a record that another
// server was quicker with. After an error that is no TakenError all of it has failed, and
// now is nil.
func Yield[W, R any](batch []W, records func(W) []R, err error) (kept, lost []W, now []R, failed error) {
	var taken *TakenError[R]
	if !errors.As(err, &taken) {
		if err != nil {
			return nil, nil, nil, err
		}
		return batch, nil, nil, nil
	}
	i := 0
	for _, w := range batch {
		gone := false
		for range records(w) {
			gone = gone || taken.Lost[i]
			i++
		}
		if gone {
			lost = append(lost, w)
		} else {
			kept = append(kept, w)
		}
	}
	return kept, lost, taken.Now, nil
}
