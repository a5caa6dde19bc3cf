package etcdsnap

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func taken(at time.Time, size int64) Manifest {
	return Manifest{Name: files.Etcd.Name("demo", at), At: at, Size: size}
}

func TestWhatIsDoneNext(t *testing.T) {
	t.Parallel()
	plan := Plan{Every: 6 * time.Hour, Keep: 28}
	failed := errors.New("no")
	good := taken(noon, 1<<20)
	large := taken(noon, checkSmall+1)
	for what, c := range map[string]struct {
		s    State
		at   time.Duration // after noon
		do   Do
		wait time.Duration
	}{
		"there is none":                               {State{}, 0, DoTake, 0},
		"there is one, not checked":                   {State{Good: good}, time.Minute, DoCheck, 0},
		"it is checked":                               {State{Good: good, Checked: good.Name, CheckedAt: noon}, time.Hour, DoWait, 5 * time.Hour},
		"it is as old as it may get":                  {State{Good: good, Checked: good.Name}, 6 * time.Hour, DoTake, 0},
		"one is due before the last is checked":       {State{Good: good}, 6 * time.Hour, DoTake, 0},
		"a clock that was set back a year":            {State{Good: good, Checked: good.Name}, -365 * 24 * time.Hour, DoWait, 6 * time.Hour},
		"the first failed":                            {State{Failed: failed, Failures: 1, FailedAt: noon}, 20 * time.Second, DoWait, 40 * time.Second},
		"a minute after the first failed":             {State{Failed: failed, Failures: 1, FailedAt: noon}, time.Minute, DoTake, 0},
		"the third in a row failed":                   {State{Failed: failed, Failures: 3, FailedAt: noon}, 3 * time.Minute, DoWait, time.Minute},
		"the hundredth in a row failed":               {State{Failed: failed, Failures: 100, FailedAt: noon}, 29 * time.Minute, DoWait, time.Minute},
		"it failed, and the last good one is checked": {State{Good: good, Failed: failed, Failures: 1, FailedAt: noon.Add(6 * time.Hour)}, 6 * time.Hour, DoCheck, 0},
		"it failed at a time that is still to come":   {State{Failed: failed, Failures: 1, FailedAt: noon.Add(time.Hour)}, 0, DoWait, time.Minute},
		"a large one, the first since the start":      {State{Good: large}, time.Minute, DoCheck, 0},
		"a large one, and another was checked lately": {State{Good: large, Checked: "x", CheckedAt: noon.Add(-time.Hour)}, time.Minute, DoWait, 6*time.Hour - time.Minute},
		"a large one, a week after the last check":    {State{Good: large, Checked: "x", CheckedAt: noon.Add(-7 * 24 * time.Hour)}, time.Minute, DoCheck, 0},
		"a large one, and the one before was broken":  {State{Good: large, Checked: "x", CheckedAt: noon, Broken: "no"}, time.Minute, DoCheck, 0},
		"no room for a check":                         {State{Good: good, CheckFailed: failed, CheckFailedAt: noon}, time.Minute, DoWait, 59 * time.Minute},
		"no room for a check an hour ago":             {State{Good: good, CheckFailed: failed, CheckFailedAt: noon}, time.Hour, DoCheck, 0},
		"it is not checked, and not copied before":    {State{Good: good, Place: "s3"}, time.Minute, DoCheck, 0},
		"no room for a check, so it is copied":        {State{Good: good, Place: "s3", CheckFailed: failed, CheckFailedAt: noon}, time.Minute, DoCopy, 0},
		"checked, not copied":                         {State{Good: good, Checked: good.Name, Place: "s3"}, time.Minute, DoCopy, 0},
		"copied":                                      {State{Good: good, Checked: good.Name, Place: "s3", Copied: good.Name}, time.Hour, DoWait, 5 * time.Hour},
		"copying failed":                              {State{Good: good, Checked: good.Name, Place: "s3", CopyFailed: failed, CopyFailedAt: noon}, time.Minute, DoWait, 4 * time.Minute},
		"copying failed five minutes ago":             {State{Good: good, Checked: good.Name, Place: "s3", CopyFailed: failed, CopyFailedAt: noon}, 5 * time.Minute, DoCopy, 0},
	} {
		do, wait := Next(plan, c.s, noon.Add(c.at))
		if do != c.do || wait != c.wait {
			t.Errorf("%s: %s in %s, want %s in %s", what, do, wait, c.do, c.wait)
		}
	}
}

// Whoever wants one more often than failures are tried again is not made to wait for longer.
func TestAFailureWaitsNoLongerThanTheInterval(t *testing.T) {
	t.Parallel()
	plan := Plan{Every: 5 * time.Minute, Keep: 28}
	s := State{Failed: errors.New("no"), Failures: 100, FailedAt: noon}
	if do, wait := Next(plan, s, noon.Add(time.Minute)); do != DoWait || wait != 4*time.Minute {
		t.Errorf("%s in %s", do, wait)
	}
}

func TestWhenItIsLate(t *testing.T) {
	t.Parallel()
	plan := Plan{Every: 6 * time.Hour}
	for what, c := range map[string]struct {
		s    State
		at   time.Duration
		want bool
	}{
		"twice the interval":        {State{Started: noon.Add(-time.Hour), Good: taken(noon, 1)}, 12 * time.Hour, false},
		"more":                      {State{Started: noon.Add(-time.Hour), Good: taken(noon, 1)}, 12*time.Hour + time.Second, true},
		"the server has just begun": {State{Started: noon}, time.Hour, false},
		"there never was one":       {State{Started: noon}, 13 * time.Hour, true},
		"the server has just begun, and the last is old": {State{Started: noon.Add(24 * time.Hour), Good: taken(noon, 1)}, 24 * time.Hour, true},
	} {
		if got := c.s.Late(plan, noon.Add(c.at)); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestWhatDoesNotStay(t *testing.T) {
	t.Parallel()
	day := func(n int) string { return files.Etcd.Name("demo", noon.AddDate(0, 0, n)) }
	var all []files.File
	for i := range 6 {
		f, _ := files.Etcd.Named(day(i), 1)
		all = append(all, f)
	}
	other, _ := files.Etcd.Named(files.Etcd.Name("prod", noon.AddDate(-1, 0, 0)), 1)
	all = append(all, other)
	now := noon.AddDate(0, 0, 5).Add(time.Hour)
	for what, c := range map[string]struct {
		stay []string
		plan Plan
		want []string
	}{
		"by number":                              {[]string{day(5)}, Plan{Keep: 3}, []string{day(2), day(1), day(0)}},
		"by age":                                 {[]string{day(5)}, Plan{Keep: 100, KeepFor: 50 * time.Hour}, []string{day(2), day(1), day(0)}},
		"the oldest is the last good one":        {[]string{day(0)}, Plan{Keep: 2, KeepFor: time.Hour}, []string{day(4), day(3), day(2), day(1)}},
		"one good and one that was read in full": {[]string{day(5), day(1)}, Plan{Keep: 3}, []string{day(3), day(2), day(0)}},
		"more that stay than there is room for":  {[]string{day(5), day(1)}, Plan{Keep: 1}, []string{day(4), day(3), day(2), day(0)}},
		"a name that is not there":               {[]string{""}, Plan{Keep: 5}, []string{day(0)}},
		"the saved one's name is the oldest, for the clock was ahead": {[]string{day(0)}, Plan{Keep: 3}, []string{day(3), day(2), day(1)}},
	} {
		var got []string
		for _, f := range Surplus(all, "demo", c.stay, c.plan, now) {
			got = append(got, f.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%v\nwant\n%v", what, got, c.want)
		}
	}
	if fmt.Sprint(all[len(all)-1].Cluster) != "prod" {
		t.Error("the list of the caller was changed")
	}
}
