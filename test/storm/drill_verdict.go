package main

import (
	"errors"
	"fmt"
	"time"
)

// judge says how it ended. Every machine must be where it belongs, without anybody who
// switched it off and on, and no disk written twice.
func (d *drill) judge(begin time.Time) error {
	var errs []error
	restarts, retries := 0, 0
	for _, m := range d.machines {
		restarts += m.restarts
		retries += m.retries
		switch {
		case m.doing != "done":
			errs = append(errs, fmt.Errorf("%s did not get there: it was at %s; before: %v", m.name, m.doing, m.failed))
		case !m.unlisted && m.writes != 1:
			errs = append(errs, fmt.Errorf("%s has its disk written %d times", m.name, m.writes))
		}
	}
	for _, n := range d.notes {
		errs = append(errs, errors.New(n))
	}
	fmt.Printf("%6.1f s: %d of %d machines are where they belong, %d disks written; %d starts again; %d requests repeated; %d complaints\n",
		time.Since(begin).Seconds(), len(d.machines)-len(errs)+len(d.notes), len(d.machines), d.installed.Load(), restarts, retries, len(d.notes))
	fmt.Printf("%10s %d addresses given, none twice\n", "", len(d.owners))
	if len(errs) > 5 {
		errs = append(errs[:5], fmt.Errorf("and %d more", len(errs)-5))
	}
	if len(errs) > 0 {
		errs = append(errs, fmt.Errorf("the end of the other server's log:\n%s", d.survivor().tail()))
	}
	return errors.Join(errs...)
}
