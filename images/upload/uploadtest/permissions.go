package uploadtest

import (
	"net/http"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imagectl/imagectl/images/upload"
)

// Permissions compares what a platform's page says that an upload has to be allowed with what
// its requests ask for: nothing is asked that the page does not have, and the page has nothing
// that nothing asks for.
//
// start is Run's; needs says of a request what has to be allowed for it, if anything. listed is
// what the page has; a name may end in *.
func Permissions(t *testing.T, start func(*testing.T) Platform, needs func(*http.Request) []string, listed []string) {
	t.Helper()
	if len(listed) == 0 {
		t.Fatal("the page lists nothing: the test looks at the wrong place")
	}
	seen := map[string]bool{}
	var mu sync.Mutex
	life(t, start, func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		for _, need := range needs(r) {
			seen[need] = true
		}
	})
	used := map[string]bool{}
	for need := range seen {
		i := slices.IndexFunc(listed, func(l string) bool {
			good, err := path.Match(l, need)
			return err == nil && good
		})
		if i < 0 {
			t.Errorf("%s is asked for, and the page does not have it", need)
			continue
		}
		used[listed[i]] = true
	}
	for _, l := range listed {
		if !used[l] {
			t.Errorf("the page has %s, and nothing asks for it", l)
		}
	}
}

// life takes images through all that a user may do with them, and through uploads that broke
// off at every call.
func life(t *testing.T, start func(*testing.T) Platform, see func(*http.Request)) {
	t.Helper()
	b := set(t, start)
	b.faults.Watch(see)
	one := b.must(b.image(1), true)
	calls := b.faults.Calls()
	b.must(b.image(1), true)
	b.must(b.image(2), true)
	b.must(b.image(3), false)
	b.must(b.image(4), false)
	if _, _, err := upload.Rollback(b.Context(), b.target, family); err != nil {
		b.Fatal(err)
	}
	if _, err := b.target.Verify(b.Context(), one.Object, b.image(1)); err != nil {
		b.Fatal(err)
	}
	if got, err := upload.Prune(b.Context(), b.target, family, 1, false, nil); err != nil || !slices.ContainsFunc(got, func(p upload.Pruned) bool { return p.Deleted }) {
		b.Fatalf("pruned are %+v, %v, want one that is deleted", got, err)
	}
	for n := 1; n <= calls; n++ {
		for _, after := range []string{"run again", "clean up"} {
			b := set(t, start)
			b.faults.Watch(see)
			img := b.image(1)
			b.faults.Fail(n, Lost, true)
			out, err := b.run(b.Context(), img, true)
			b.faults.Heal()
			if !b.recovers(img, out, err, after) {
				t.Errorf("that was call %d of %d, lost, then %s", n, calls, after)
			}
		}
	}
}

// Watch has every request shown from now on.
func (f *Faults) Watch(see func(*http.Request)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.see = see
}

// show shows a request to whoever watches.
func (f *Faults) show(r *http.Request) {
	f.mu.Lock()
	see := f.see
	f.mu.Unlock()
	if see != nil {
		see(r)
	}
}

// Listed are the names in the code spans of a section of a page in docs/ that have a form. A
// name without a separator goes on with the beginning of the one before: `a:B`, `C` are a:B
// and a:C.
func Listed(t *testing.T, page, section, separator string, form *regexp.Regexp) (all []string) {
	t.Helper()
	b, err := os.ReadFile("../../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(b), "\n## "+section+"\n")
	if !found {
		t.Fatalf("%s has no section %s", page, section)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	before := ""
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
		name := m[1]
		if !form.MatchString(name) {
			continue
		}
		if i := strings.LastIndex(name, separator); i >= 0 {
			before = name[:i+len(separator)]
		} else {
			name = before + name
		}
		if slices.Contains(all, name) {
			t.Errorf("%s has %s twice", page, name)
		}
		all = append(all, name)
	}
	return all
}
