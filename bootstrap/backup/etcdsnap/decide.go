package etcdsnap

import (
	"slices"
	"time"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

const (
	// firstRetry is how long after a failed attempt the next one is; each further failure in a
	// row doubles it up to lastRetry.
	firstRetry, lastRetry = time.Minute, 30 * time.Minute
	// copyRetry is that for copies, checkRetry for a check that could not be made.
	copyRetry, checkRetry = 5 * time.Minute, time.Hour
	// checkEvery is how often at least a snapshot is read page by page. One of up to checkSmall
	// bytes always is: that takes seconds; and so is any after one that was broken.
	checkEvery = 7 * 24 * time.Hour
	checkSmall = 256 << 20
)

// Plan is what an operator wants. All fields but KeepFor are needed.
type Plan struct {
	// Every is how often.
	Every time.Duration
	// Keep is how many of the newest stay, KeepFor how long one stays at most; 0 for ever. The
	// newest good one stays whatever they say.
	Keep    int
	KeepFor time.Duration
}

// State is how it stands. The zero value is a cluster without snapshots.
type State struct {
	// Started is when somebody began to look.
	Started time.Time
	// Good is the newest that was read back to its end.
	Good Manifest
	// Failed is why the newest attempt failed, FailedAt when, Failures how many failed since the
	// last good one; nil when none did. Total are all failures since Started.
	Failed          error
	FailedAt        time.Time
	Failures, Total int
	// Waiting is why none can be taken now, though it is time; empty mostly.
	Waiting string
	// Checked is the name of the last snapshot that Inspect has found whole, CheckedAt when. Broken
	// is why it found the last one that it looked at broken, and empty when it was not.
	Checked   string
	CheckedAt time.Time
	Broken    string
	// CheckFailed is why one could not be looked at; it says nothing about the snapshot.
	CheckFailed   error
	CheckFailedAt time.Time
	// Place names where copies go; empty for nowhere. Copied is the name of the last that was
	// copied and read back, CopyFailed why the newest attempt failed.
	Place        string
	Copied       string
	CopiedAt     time.Time // when that snapshot was taken
	CopyFailed   error
	CopyFailedAt time.Time
}

// Do is what is done next.
type Do string

// What may be done.
const (
	DoWait  Do = "wait"
	DoTake  Do = "take"
	DoCheck Do = "check"
	DoCopy  Do = "copy"
)

// Next decides what is done now; for DoWait, how long nothing is to do. It is pure. A snapshot is
// checked before it is copied: the copy of a broken one would take the place of a good one.
func Next(p Plan, s State, now time.Time) (Do, time.Duration) {
	wait := s.untilTake(p, now)
	if wait <= 0 {
		return DoTake, 0
	}
	for _, other := range []struct {
		do    Do
		until func(time.Time) (time.Duration, bool)
	}{{DoCheck, s.untilCheck}, {DoCopy, s.untilCopy}} {
		until, todo := other.until(now)
		if todo && until <= 0 {
			return other.do, 0
		}
		if todo {
			wait = min(wait, until)
		}
	}
	return DoWait, wait
}

func (s State) untilTake(p Plan, now time.Time) time.Duration {
	var wait time.Duration
	if s.Good.Name != "" {
		// A clock that was set back must not stop snapshots for long.
		wait = within(s.Good.At.Add(p.Every).Sub(now), p.Every)
	}
	if s.Failures > 0 {
		pause := min(backoff(s.Failures), p.Every)
		wait = max(wait, within(s.FailedAt.Add(pause).Sub(now), pause))
	}
	return wait
}

func (s State) untilCheck(now time.Time) (time.Duration, bool) {
	if s.Good.Name == "" || s.Good.Name == s.Checked {
		return 0, false
	}
	var wait time.Duration
	if s.Good.Size > checkSmall && !s.CheckedAt.IsZero() && s.Broken == "" {
		wait = within(s.CheckedAt.Add(checkEvery).Sub(now), checkEvery)
	}
	if s.CheckFailed != nil {
		wait = max(wait, within(s.CheckFailedAt.Add(checkRetry).Sub(now), checkRetry))
	}
	return wait, true
}

func (s State) untilCopy(now time.Time) (time.Duration, bool) {
	if s.Place == "" || s.Good.Name == "" || s.Good.Name == s.Copied {
		return 0, false
	}
	if s.CopyFailed == nil {
		return 0, true
	}
	return within(s.CopyFailedAt.Add(copyRetry).Sub(now), copyRetry), true
}

// backoff is how long after so many failures in a row the next attempt is.
func backoff(failures int) time.Duration {
	return min(firstRetry<<min(failures-1, 10), lastRetry)
}

// within is d, but neither negative nor more than most.
func within(d, most time.Duration) time.Duration { return min(max(d, 0), most) }

// Late says whether the newest good snapshot is older than it should ever be.
func (s State) Late(p Plan, now time.Time) bool {
	from := s.Good.At
	if s.Good.Name == "" {
		from = s.Started
	}
	return now.Sub(from) > 2*p.Every
}

// Surplus are those of a cluster that do not stay. Those that are named stay, whatever their names
// say of their age, and count among the newest: a clock that was once ahead must not cost what comes
// after.
func Surplus(all []files.File, cluster string, stay []string, p Plan, now time.Time) []files.File {
	others := files.Of(cluster, slices.Clone(all))
	all = slices.DeleteFunc(slices.Clone(others), func(f files.File) bool { return slices.Contains(stay, f.Name) })
	slices.SortFunc(all, func(a, b files.File) int { return b.At.Compare(a.At) })
	room := max(p.Keep-(len(others)-len(all)), 0)
	var gone []files.File
	for i, f := range all {
		if i >= room || p.KeepFor > 0 && now.Sub(f.At) > p.KeepFor {
			gone = append(gone, f)
		}
	}
	return gone
}
