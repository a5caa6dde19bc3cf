package uploadtest

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// bulk is more than any body has that is not the file's, or a piece of it.
const bulk = 16 << 10

// meeting is how long an upload may take to its middle. It is no measure: it only ends a
// test that would hang.
const meeting = 2 * time.Minute

// machine is one of two that upload an image: a journal, a target and a process of its own.
type machine struct {
	*bench
	faults  *Faults
	target  upload.Target
	halfway *Halfway
	out     upload.Outcome
	err     error
	left    []upload.Leftover
	// met is closed when it waits for the other, and ended when it is done.
	met, ended chan struct{}

	mu sync.Mutex
	// said is what its user reads.
	said []string
}

func (m *machine) says() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.said)
}

func (b *bench) machine() *machine {
	f := &Faults{}
	return &machine{bench: b, faults: f, target: b.Target(f), halfway: &Halfway{goOn: func() {}}, met: make(chan struct{}), ended: make(chan struct{})}
}

// start begins its upload; ended is closed at the end of it.
func (m *machine) start(img upload.Image) {
	m.Helper()
	j, err := upload.OpenJournal(m.TempDir(), upload.Key{Target: targetName, Image: img})
	if err != nil {
		m.Fatal(err)
	}
	met := sync.OnceFunc(func() { close(m.met) })
	go func() {
		defer close(m.ended)
		m.out, m.err = upload.Run(m.Context(), m.target, img, j, func(e upload.Event) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if said := e.Phase + ": " + e.Note; !slices.Contains(m.said, said) {
				m.said = append(m.said, said)
			}
			if strings.HasPrefix(e.Phase, "waiting") {
				met()
			}
		}, false)
		m.left = j.Left()
		if err := j.Close(); err != nil {
			m.Error(err)
		}
	}()
}

// twoAtOnce has two machines upload one image, the second from when the first is in the
// middle of it: of the file's body or stream or, where the platform fetches, of its import.
func twoAtOnce(t *testing.T, start func(*testing.T) Platform) {
	count := set(t, start)
	count.faults.Heal()
	count.must(count.image(1), false)
	var least, streamed int64
	if largest := slices.Max(count.faults.Sent()); largest >= bulk {
		// Packed on the way, the same image may have another size.
		least = largest * 3 / 4
	} else {
		streamed = count.faults.Streamed() / 2
	}
	if least == 0 && streamed < bulk && count.Hold == nil {
		t.Fatalf("no body has %d bytes, no connection carries as many, and nothing is imported: where is the middle of an upload?", bulk)
	}
	for _, tt := range []struct {
		name  string
		stops bool
	}{
		{"the second goes on as far as it can while the first stands", false},
		{"both stand in the middle", true},
	} {
		if tt.stops && least == 0 && streamed < bulk {
			// It is the platform that goes on.
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			b := set(t, start)
			one, two := b.machine(), b.machine()
			if least > 0 || streamed >= bulk {
				one.halfway = one.faults.Stand(least, streamed)
				if tt.stops {
					two.halfway = two.faults.Stand(least, streamed)
				}
			}
			b.together(one, two)
		})
	}
}

func (b *bench) together(one, two *machine) {
	b.Helper()
	img := b.image(1)
	imports := one.halfway.Reached() == nil
	if imports {
		b.Hold()
	}
	release := func() {
		one.halfway.GoOn()
		two.halfway.GoOn()
		if imports {
			b.Release()
		}
	}
	defer release()
	over := time.After(meeting)
	one.start(img)
	begun := one.halfway.Reached()
	if imports {
		begun = b.imports(one.ended)
	}
	select {
	case <-begun:
	case <-one.ended:
		b.Fatalf("the first upload ended before it was in the middle: %+v, %v", one.out, one.err)
	case <-over:
		b.Fatalf("the first upload is not in the middle after %s", meeting)
	}
	two.start(img)
	select {
	case <-two.halfway.Reached():
	case <-two.met:
	case <-two.ended:
	case <-over:
		b.Fatalf("the second upload has neither met the first nor ended after %s; it said %q", meeting, two.says())
	}
	select {
	case <-one.ended:
		b.Errorf("the first upload ended while it stood: %+v, %v", one.out, one.err)
	default:
	}
	release()
	for i, m := range []*machine{one, two} {
		select {
		case <-m.ended:
		case <-over:
			b.Fatalf("upload %d does not end; it said %q", i, m.says())
		}
		if m.err != nil || len(m.left) > 0 {
			b.Errorf("upload %d: %v, and left is %v", i, m.err, m.left)
		}
		// Each says what there is now, whoever made it.
		if o := m.out.Object; !o.Current || o.Digest != img.Digest || o.Version != img.Version || len(m.says()) == 0 {
			b.Errorf("upload %d: the outcome is %+v, want %s of %s as current; it said %q", i, m.out, img.Version, img.Digest, m.says())
		}
	}
	if one.out.Object.ID != two.out.Object.ID || !one.out.Promoted && !two.out.Promoted {
		b.Errorf("they made %+v and %+v, want one object that one of them promoted", one.out, two.out)
	}
	b.clean(1)
	if b.current() != one.out.Object.ID {
		b.Errorf("current is %q, want %s", b.current(), one.out.Object.ID)
	}
}

// imports is closed when the platform has something of the upload, whose import Hold keeps
// from ending.
func (b *bench) imports(ended <-chan struct{}) <-chan struct{} {
	begun := make(chan struct{})
	go func() {
		for {
			if left, err := b.Leftovers(); err == nil && len(left) > 0 {
				close(begun)
				return
			}
			select {
			case <-ended:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return begun
}
