package uploadtest

import (
	"testing"

	"github.com/imagectl/imagectl/images/upload"
)

// everyCall breaks each call of an upload that is promoted, in each way, alone or
// with all that come after it; then either runs the upload again or cleans up.
func everyCall(t *testing.T, start func(*testing.T) Platform) {
	count := set(t, start)
	img := count.image(1)
	count.must(img, true)
	calls, sent := count.faults.Calls(), count.faults.Sent()
	if calls < 2 {
		t.Fatalf("an upload makes %d calls: do they go through Faults?", calls)
	}
	broke, runs := 0, 0
	for n := 1; n <= calls; n++ {
		for k, kind := range []Kind{Refused, Lost, Unavailable, Hangs, Cut} {
			if kind == Cut && sent[n-1] == 0 || count.Slower && k != n/2%4 {
				continue
			}
			for d, dead := range []bool{false, true} {
				for a, after := range []string{"run again", "clean up"} {
					if count.Slow && (n+k)%4 != 2*d+a || kind == Cut && (n+d)%2 != a {
						// Half a body comes to what Refused or Lost comes to, mostly.
						continue
					}
					runs++
					b := set(t, start)
					b.faults.Fail(n, kind, dead)
					ctx := b.Context()
					if kind == Hangs {
						ctx = b.faults.Patience(ctx)
					}
					out, err := b.run(ctx, img, true)
					b.faults.Heal()
					if err != nil {
						broke++
					}
					if !b.recovers(img, out, err, after) {
						t.Errorf("that was call %d of %d, %s, dead %t, then %s; the first run said: %v", n, calls, kind, dead, after, err)
					}
				}
			}
		}
	}
	if broke == 0 {
		t.Error("no fault broke an upload")
	}
	t.Logf("%d calls; %d of %d runs broke off", calls, broke, runs)
}

func (b *bench) recovers(img upload.Image, out upload.Outcome, failed error, after string) bool {
	b.Helper()
	bad := func(format string, args ...any) bool {
		b.Errorf(format, args...)
		return false
	}
	if after == "clean up" {
		if _, err := upload.Cleanup(b.Context(), b.target, b.state, targetName); err != nil {
			return bad("cleaning up: %v", err)
		}
	} else {
		again, err := b.run(b.Context(), img, true)
		if err != nil {
			return bad("running again: %v", err)
		}
		out = again
	}
	if b.Settle != nil {
		// What is half made and has lost its source is broken only now.
		b.Settle()
	}
	left, err := b.Leftovers()
	if err != nil {
		return bad("%v", err)
	}
	all := b.list()
	for _, o := range all {
		if o.Broken || o.Digest != img.Digest {
			return bad("left is %+v", o)
		}
	}
	if journals, err := upload.Journals(b.state, targetName); err != nil || len(journals) > 0 {
		return bad("journals are left: %v %v", journals, err)
	}
	switch {
	case len(left) != len(all) || len(all) > 1:
		return bad("the platform has %v, listed is %+v", left, all)
	case after != "clean up" || failed == nil:
		if len(all) != 1 || !all[0].Current || all[0].ID != out.Object.ID {
			return bad("listed is %+v, want %s as current", all, out.Object.ID)
		}
	}
	return true
}
