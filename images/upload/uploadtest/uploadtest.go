// Package uploadtest is what every upload.Target has to stand: one suite, run
// against each platform's server or a stateful stand-in for it. It breaks every
// remote call of an upload in turn and then wants the next run, or a cleanup, to
// leave one image or none, never a half of one.
//
// It is for tests only.
package uploadtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upload"
)

// Platform is one fresh platform with a server that ends with the test. A hook that
// is nil needs a reason in Absent.
type Platform struct {
	// Target is ours with right credentials; all its remote calls go through f.
	Target func(f *Faults) upload.Target
	// Stranger is one with wrong credentials.
	Stranger func() upload.Target
	// Leftovers are all things there that are not foreign and not the stable name
	// either, finished images and halves alike, in words.
	Leftovers func() ([]string, error)
	// Plant makes objects of others; the function that it returns says whether they
	// are as they were.
	Plant func() (untouched func() error)
	// Fill makes the platform full; Quota lets it refuse for a quota.
	Fill, Quota func()
	// Use has something need an object that is not current.
	Use func(o upload.Object) error
	// Patient is Target with as many tries as users have, and Repeats tells which of its
	// requests are sent again after a 5xx.
	Patient func(f *Faults) upload.Target
	Repeats func(r *http.Request) bool
	// Changed is Target with other options for the template. Template is the family's
	// template in words, and Options are those of Changed's that Target's has not.
	Changed  func(f *Faults) upload.Target
	Template func() (string, error)
	Options  []string
	// Later is Target a day on and more, by its clock.
	Later func(f *Faults) upload.Target
	// Absent says for each case without a hook why the platform has no such thing, or
	// where else it is tried. The case is skipped with these words.
	Absent map[Case]string
	// Hold keeps imports from ending until Release, where the platform imports; Settle
	// waits until all that it does by itself has ended, well or not.
	Hold, Release, Settle func()
	// Unprovable are the checks of an image that was uploaded just now that the platform
	// gives no means for, by name. All others have to be good.
	Unprovable []string
	// Waits: what is being imported cannot be removed, so that a cleanup waits for its end.
	Waits bool
	// Slow has each fault of each call tried in one of its four circumstances, which
	// change from one to the next, and not in all: for a server that takes long. With
	// -short every platform is.
	Slow bool
	// Slower has each call broken in one way alone with -short, by its place in the order,
	// for a server that takes long even so.
	Slower bool
	// RawSize is that of the images' disks in bytes; 0 for 3 MiB and a sector. Less is
	// quicker where all bytes are hashed again and again.
	RawSize int64
}

// bench is one platform with what a command line has beside it.
type bench struct {
	*testing.T
	Platform
	faults *Faults
	target upload.Target
	state  string
}

const (
	family     = "prod-worker"
	targetName = "one-12345678"
)

func set(t *testing.T, start func(*testing.T) Platform) *bench {
	t.Helper()
	b := &bench{T: t, Platform: start(t), faults: &Faults{}, state: t.TempDir()}
	if gaps := b.gaps(); len(gaps) > 0 {
		t.Fatalf("the platform leaves cases out without a word:\n%s", strings.Join(gaps, "\n"))
	}
	b.Slow = b.Slow || testing.Short()
	b.Slower = b.Slower && testing.Short()
	b.target = b.Target(b.faults)
	return b
}

func (b *bench) image(seed uint64) upload.Image {
	b.Helper()
	return imageOf(b.T, b.target.Formats()[0], family, seed, cmp.Or(b.RawSize, rawSize))
}

// run is one process: it opens the journal, uploads, and ends.
func (b *bench) run(ctx context.Context, img upload.Image, promote bool) (upload.Outcome, error) {
	b.Helper()
	j, err := upload.OpenJournal(b.state, upload.Key{Target: targetName, Image: img})
	if err != nil {
		b.Fatal(err)
	}
	out, err := upload.Run(ctx, b.target, img, j, func(upload.Event) {}, promote)
	if cerr := j.Close(); cerr != nil {
		b.Fatal(cerr)
	}
	return out, err
}

func (b *bench) must(img upload.Image, promote bool) upload.Outcome {
	b.Helper()
	out, err := b.run(b.Context(), img, promote)
	if err != nil {
		b.Fatalf("uploading: %v", err)
	}
	return out
}

func (b *bench) list() []upload.Object {
	b.Helper()
	all, err := b.target.List(b.Context(), family)
	if err != nil {
		b.Fatalf("listing: %v", err)
	}
	return all
}

// clean wants n things at the platform, all of them finished, and no journal.
func (b *bench) clean(n int) {
	b.Helper()
	left, err := b.Leftovers()
	if err != nil {
		b.Fatal(err)
	}
	all := b.list()
	if len(left) != n || len(all) != n || slices.ContainsFunc(all, func(o upload.Object) bool { return o.Broken }) {
		b.Errorf("the platform has %d things, want %d: %s; listed are %+v", len(left), n, strings.Join(left, ", "), all)
	}
	if j, err := upload.Journals(b.state, targetName); err != nil || len(j) > 0 {
		b.Errorf("journals are left: %v %v", j, err)
	}
}

// Run runs the suite; start gives each test a platform of its own.
func Run(t *testing.T, start func(*testing.T) Platform) {
	tests := []struct {
		name string
		run  func(*bench)
	}{
		{"a fresh upload is found, current and verified", fresh},
		{"a second upload does nothing and says so", second},
		{"a dry run changes nothing", dry},
		{"a newer version is current only when it is promoted, and rollback goes back", promotion},
		{"prune leaves what is current, before it, and newest", prune},
		{"prune leaves what is in use", pruneInUse},
		{"wrong credentials are ErrAuth and leave nothing", stranger},
		{"a full platform is ErrSpace and leaves nothing", full},
		{"a quota is ErrSpace and leaves nothing", quota},
		{"a storm of 503 is ErrServer", storm},
		{"a server that does not answer is ErrTimeout, and the next run ends it", hangs},
		{"a server that stops in the middle is ErrTimeout, and the next run ends it", stalls},
		{"a server that answers bit by bit is waited for", trickles},
		{"an upload that is called off leaves nothing after a cleanup", calledOff},
		{"objects of others stay as they are", foreign},
		{"options that have changed reach the template of the same image", options},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(set(t, start)) })
	}
	t.Run("two uploads of one image at once make one", func(t *testing.T) { twoAtOnce(t, start) })
	t.Run("a server that fails for a while is asked again", func(t *testing.T) { storms(t, start) })
	t.Run("what is left and written down nowhere is found after a day", func(t *testing.T) { forgotten(t, start) })
	t.Run("every remote call may fail", func(t *testing.T) { everyCall(t, start) })
}

// Case is one that not every platform can be brought into.
type Case string

// The cases, each with the hook that it needs.
const (
	Credentials Case = "wrong credentials"               // Stranger
	Full        Case = "a full platform"                 // Fill
	Quota       Case = "a quota"                         // Quota
	InUse       Case = "an object in use"                // Use
	CalledOff   Case = "an import that is held"          // Hold and Release
	Others      Case = "objects of somebody else's"      // Plant
	Storm       Case = "a server that fails for a while" // Patient and Repeats
	Options     Case = "options of a template"           // Changed, Template and Options
	Forgotten   Case = "a journal that is lost"          // Later
)

// hooks says which cases the platform can be brought into.
func (p Platform) hooks() map[Case]bool {
	return map[Case]bool{
		Credentials: p.Stranger != nil, Full: p.Fill != nil, Quota: p.Quota != nil,
		InUse: p.Use != nil, CalledOff: p.Hold != nil && p.Release != nil, Others: p.Plant != nil, Storm: p.Patient != nil && p.Repeats != nil,
		Forgotten: p.Later != nil, Options: p.Changed != nil && p.Template != nil && len(p.Options) > 0,
	}
}

// gaps are the cases with neither a hook nor a reason, or with both.
func (p Platform) gaps() (all []string) {
	for c, has := range p.hooks() {
		why := strings.TrimSpace(p.Absent[c])
		switch {
		case !has && why == "":
			all = append(all, fmt.Sprintf("%s: there is neither a hook nor a reason in Absent", c))
		case has && why != "":
			all = append(all, fmt.Sprintf("%s: there is a hook, and a reason for there being none: %s", c, why))
		}
	}
	for c := range p.Absent {
		if _, known := p.hooks()[c]; !known {
			all = append(all, fmt.Sprintf("%s: there is no such case", c))
		}
	}
	slices.Sort(all)
	return all
}

// needs skips a case that the platform cannot be brought into.
func (b *bench) needs(c Case) {
	b.Helper()
	if !b.hooks()[c] {
		b.Skipf("%s: %s", c, b.Absent[c])
	}
}

func fresh(b *bench) {
	img := b.image(1)
	out := b.must(img, false)
	if out.Unchanged || !out.Promoted || out.Object.Digest != img.Digest || out.Object.Version != img.Version || out.Object.Name != family {
		b.Errorf("outcome %+v", out)
	}
	b.clean(1)
	if all := b.list(); !all[0].Current || all[0].ID != out.Object.ID {
		b.Errorf("listed is %+v, want %s as current", all, out.Object.ID)
	}
	checks, err := b.target.Verify(b.Context(), out.Object, img)
	if err != nil {
		b.Fatal(err)
	}
	good := 0
	var unprovable []string
	for _, c := range checks {
		switch c.Result {
		case upload.Good:
			good++
		case upload.Unprovable:
			unprovable = append(unprovable, c.Name)
			if c.Detail == "" {
				b.Errorf("check %s cannot be proven, without a reason", c.Name)
			}
		default:
			b.Errorf("check %s is %q: %s", c.Name, c.Result, c.Detail)
		}
	}
	if !slices.Equal(unprovable, b.Unprovable) {
		b.Errorf("what cannot be proven is %q, want %q", unprovable, b.Unprovable)
	}
	if good == 0 {
		b.Error("nothing was verified")
	}
	b.tellsLabels(out.Object, img)
	other := b.image(2)
	checks, err = b.target.Verify(b.Context(), out.Object, other)
	if err != nil || !slices.ContainsFunc(checks, func(c upload.Check) bool { return c.Result == upload.Bad }) {
		b.Errorf("another image passes: %+v %v", checks, err)
	}
}

// tellsLabels changes each label in turn: one that is of the disk has to be told, and one
// that is of the build says nothing against it.
func (b *bench) tellsLabels(o upload.Object, img upload.Image) {
	b.Helper()
	for key := range img.Labels {
		changed := img
		changed.Labels = maps.Clone(img.Labels)
		changed.Labels[key] = "another"
		checks, err := b.target.Verify(b.Context(), o, changed)
		if err != nil {
			b.Fatal(err)
		}
		bad := slices.ContainsFunc(checks, func(c upload.Check) bool { return c.Result == upload.Bad })
		if want := !upload.SaysBuild(key); bad != want {
			b.Errorf("another label %s: bad is %t, want %t: %+v", key, bad, want, checks)
		}
	}
}

func second(b *bench) {
	img := b.image(1)
	first := b.must(img, true)
	again := b.must(img, true)
	if !again.Unchanged || again.Promoted || again.Object.ID != first.Object.ID || !again.Object.Current {
		b.Errorf("the second outcome is %+v", again)
	}
	b.clean(1)
}

func dry(b *bench) {
	img := b.image(1)
	for range 2 {
		p, err := b.target.Preflight(b.Context(), img)
		if err != nil || p.Found != nil || len(p.Steps) == 0 || p.Bytes <= 0 {
			b.Fatalf("plan %+v, %v", p, err)
		}
		b.clean(0)
	}
	b.must(img, true)
	p, err := b.target.Preflight(b.Context(), img)
	if err != nil || p.Found == nil || len(p.Steps) != 0 || p.Bytes != 0 {
		b.Errorf("the plan of what is there is %+v, %v", p, err)
	}
}

func (b *bench) current() string {
	b.Helper()
	id := ""
	for _, o := range b.list() {
		if o.Current && id != "" {
			b.Errorf("%s and %s are both current", id, o.ID)
		}
		if o.Current {
			id = o.ID
		}
	}
	return id
}

func promotion(b *bench) {
	one, two := b.must(b.image(1), false), b.must(b.image(2), false)
	if two.Promoted || b.current() != one.Object.ID {
		b.Errorf("current is %s after an upload that was not to be promoted; outcome %+v", b.current(), two)
	}
	for range 2 {
		if err := b.target.Promote(b.Context(), two.Object); err != nil {
			b.Fatal(err)
		}
		if b.current() != two.Object.ID {
			b.Errorf("current is %s, want %s", b.current(), two.Object.ID)
		}
	}
	for _, want := range []upload.Object{one.Object, two.Object} {
		from, to, err := upload.Rollback(b.Context(), b.target, family)
		if want.ID == two.Object.ID && errors.Is(err, upload.ErrNotFound) {
			// Only a platform that remembers what was before can go forth again.
			break
		}
		if err != nil || to.ID != want.ID || from.ID == want.ID || b.current() != want.ID {
			b.Fatalf("rolled back from %s to %s, %v, current is %s; want %s", from.ID, to.ID, err, b.current(), want.ID)
		}
	}
	b.clean(2)
}

func prune(b *bench) { b.prune(nil) }

func pruneInUse(b *bench) {
	b.needs(InUse)
	b.prune(b.Use)
}

// prune has six versions, of which something needs one where use is not nil.
func (b *bench) prune(use func(upload.Object) error) {
	b.Helper()
	var all []upload.Outcome
	for seed := range uint64(6) {
		all = append(all, b.must(b.image(seed+1), seed == 1 || seed == 2))
	}
	want := map[string]bool{all[0].Object.ID: true}
	inUse := ""
	if use != nil {
		inUse = all[3].Object.ID
		if err := use(all[3].Object); err != nil {
			b.Fatal(err)
		}
	} else {
		want[all[3].Object.ID] = true
	}
	// 0 is old, 1 was current, 2 is current, 3 is used, 4 and 5 are newest.
	previous := slices.ContainsFunc(b.list(), func(o upload.Object) bool { return o.Previous })
	if !previous {
		want[all[1].Object.ID] = true
	}
	for _, dry := range []bool{true, false} {
		got, err := upload.Prune(b.Context(), b.target, family, 2, dry, nil)
		if err != nil {
			b.Fatal(err)
		}
		for _, p := range got {
			if p.Object.ID == inUse && dry {
				continue
			}
			if p.Deleted != want[p.Object.ID] || p.Reason == "" {
				b.Errorf("dry %t: %s: deleted %t because it %s", dry, p.Object.ID, p.Deleted, p.Reason)
			}
		}
	}
	b.clean(6 - len(want))
	if b.current() != all[2].Object.ID {
		b.Errorf("current is %s", b.current())
	}
	if _, err := upload.Prune(b.Context(), b.target, family, 0, false, nil); err == nil {
		b.Error("pruning down to nothing is not refused")
	}
}

func stranger(b *bench) {
	b.needs(Credentials)
	b.target = b.Stranger()
	_, err := b.run(b.Context(), b.image(1), true)
	if !errors.Is(err, upload.ErrAuth) {
		b.Errorf("got %v, want ErrAuth", err)
	}
	b.target = b.Target(b.faults)
	b.clean(0)
}

func full(b *bench) {
	b.needs(Full)
	b.noSpace(b.Fill)
}

func quota(b *bench) {
	b.needs(Quota)
	b.noSpace(b.Quota)
}

func (b *bench) noSpace(exhaust func()) {
	b.Helper()
	exhaust()
	img := b.image(1)
	if _, err := b.run(b.Context(), img, true); !errors.Is(err, upload.ErrSpace) {
		b.Errorf("got %v, want ErrSpace", err)
	}
	if _, err := upload.Cleanup(b.Context(), b.target, b.state, targetName); err != nil {
		b.Error(err)
	}
	b.clean(0)
}

func storm(b *bench) {
	img := b.image(1)
	b.faults.Fail(1, Unavailable, true)
	_, err := b.run(b.Context(), img, true)
	if !errors.Is(err, upload.ErrServer) {
		b.Errorf("got %v, want ErrServer", err)
	}
	b.faults.Heal()
	b.clean(0)
}

func foreign(b *bench) {
	b.needs(Others)
	untouched := b.Plant()
	one, two := b.must(b.image(1), true), b.must(b.image(2), true)
	if _, _, err := upload.Rollback(b.Context(), b.target, family); err != nil {
		b.Error(err)
	}
	if _, err := upload.Prune(b.Context(), b.target, family, 1, false, nil); err != nil {
		b.Error(err)
	}
	if _, err := upload.Cleanup(b.Context(), b.target, b.state, targetName); err != nil {
		b.Error(err)
	}
	all, err := b.target.List(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	for _, o := range all {
		if o.ID != one.Object.ID && o.ID != two.Object.ID {
			b.Errorf("listed is %+v, which is not ours", o)
		}
	}
	if err := untouched(); err != nil {
		b.Error(err)
	}
}
