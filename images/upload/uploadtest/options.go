package uploadtest

import (
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// options uploads an image, changes the options of its template, and uploads it again:
// only promoted it gets them, and says so. Then each call of that is broken.
func options(b *bench) {
	b.needs(Options)
	img := b.image(1)
	first := b.must(img, true)
	b.hasOptions(false, "after the upload")

	changed := b.Changed(b.faults)
	b.target = changed
	if stale, err := upload.Stale(b.Context(), changed, first.Object); err != nil || !stale {
		b.Errorf("the template is stale: %t, %v, want that it is", stale, err)
	}
	if out := b.must(img, false); !out.Unchanged || out.Renewed || out.Promoted {
		b.Errorf("unasked, the outcome is %+v", out)
	}
	b.hasOptions(false, "unasked")
	if out := b.must(img, true); !out.Renewed || out.Unchanged || out.Promoted || out.Object.ID != first.Object.ID {
		b.Errorf("the outcome is %+v, want that the template of %s was renewed", out, first.Object.ID)
	}
	b.hasOptions(true, "renewed")
	if out := b.must(img, true); !out.Unchanged || out.Renewed {
		b.Errorf("a second time the outcome is %+v", out)
	}

	// Versions of an older upload get the options of now when they are promoted again.
	b.target = b.Target(b.faults)
	b.must(b.image(2), true)
	b.hasOptions(false, "by another image with the options of before")
	b.target = changed
	if _, to, err := upload.Rollback(b.Context(), b.target, family); err != nil || to.ID != first.Object.ID {
		b.Fatalf("rolled back to %+v, %v", to, err)
	}
	b.hasOptions(true, "rolled back")
	b.clean(2)
	b.breaksRenewal(img)
}

// breaksRenewal has the options go to and fro, with each call of it failing in turn and
// all that come after it; the next run ends it.
func (b *bench) breaksRenewal(img upload.Image) {
	b.Helper()
	const most = 100
	has, broke := true, 0
	for n := 1; n < most; n++ {
		any := false
		for _, kind := range []Kind{Refused, Lost} {
			if has = !has; has {
				b.target = b.Changed(b.faults)
			} else {
				b.target = b.Target(b.faults)
			}
			b.faults.Fail(n, kind, true)
			_, err := b.run(b.Context(), img, true)
			any = any || b.faults.Calls() >= n
			b.faults.Heal()
			if err != nil {
				broke++
			}
			if out, err := b.run(b.Context(), img, true); err != nil || !out.Object.Current {
				b.Fatalf("running again after call %d was %s: %+v, %v", n, kind, out, err)
			}
			b.hasOptions(has, "after a call that was "+string(kind))
			b.clean(2)
		}
		if !any {
			break
		}
	}
	if broke == 0 {
		b.Error("no fault broke a renewal")
	}
}

// hasOptions wants the family's template to have all of Changed's options, or none.
func (b *bench) hasOptions(want bool, when string) {
	b.Helper()
	text, err := b.Template()
	if err != nil || text == "" {
		b.Fatalf("%s the template is %q, %v", when, text, err)
	}
	for _, o := range b.Options {
		if has := strings.Contains(text, o); has != want {
			b.Errorf("%s: the template has %q: %t, want %t:\n%s", when, o, has, want, text)
		}
	}
}
