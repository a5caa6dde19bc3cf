package uploadtest

import (
	"os"
	"testing"

	"github.com/imagectl/imagectl/images/upload"
)

// forgotten breaks each call of an upload, and all that come after it, and loses the
// journal: the machine was thrown away, as those of a CI are. What is young is somebody's
// who is still at it; a day later a cleanup from anywhere removes it.
func forgotten(t *testing.T, start func(*testing.T) Platform) {
	count := set(t, start)
	count.needs(Forgotten)
	img := count.image(1)
	count.must(img, true)
	calls := count.faults.Calls()
	left := 0
	for n := 1; n <= calls; n++ {
		for k, kind := range []Kind{Refused, Lost} {
			if count.Slow && (n+k)%2 != 0 {
				continue
			}
			b := set(t, start)
			b.faults.Fail(n, kind, true)
			_, failed := b.run(b.Context(), img, true)
			b.faults.Heal()
			if err := os.RemoveAll(b.state); err != nil {
				t.Fatal(err)
			}
			if b.Settle != nil {
				b.Settle()
			}
			if things, err := b.Leftovers(); err != nil {
				t.Fatal(err)
			} else if failed != nil && len(things) > 0 {
				left++
			}
			b.target = b.Later(b.faults)
			if _, err := upload.Cleanup(b.Context(), b.target, b.state, targetName); err != nil {
				t.Errorf("cleaning up: %v", err)
			}
			things, err := b.Leftovers()
			if err != nil {
				t.Fatal(err)
			}
			all := b.list()
			if len(things) != len(all) || len(all) > 1 || len(all) == 1 && (all[0].Broken || all[0].Digest != img.Digest) {
				t.Errorf("after call %d of %d was %s there is %v, and listed is %+v; the run said: %v", n, calls, kind, things, all, failed)
			}
		}
	}
	if left == 0 {
		t.Error("no fault left anything")
	}
	t.Logf("%d calls; %d runs left something", calls, left)
}
