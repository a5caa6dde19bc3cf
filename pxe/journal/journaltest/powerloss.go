package journaltest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/imagectl/imagectl/pxe/journal"
)

// Case is a kind of record whose journal is to be tried.
type Case[R any] struct {
	Kind journal.Kind[R]
	// Live makes an empty one.
	Live func() journal.Live[R]
	// Random makes a record; there are to be few that differ in what Rivals looks at.
	Random func(*rand.Rand) R
	Same   func(a, b R) bool
	// Rivals says that one of the two may take the place of the other.
	Rivals func(a, b R) bool
}

// spare is small, so that the file is rewritten often.
const spare = 6

// PowerLoss goes through a thousand histories of four lives each. Whatever the disk
// does, and wherever the power goes: every record that was kept is there, unless one
// that was on its way has taken its place, and nothing else is.
func PowerLoss[R any](t *testing.T, c Case[R]) {
	for seed := range uint64(1000) {
		d := NewDisk(rand.New(rand.NewPCG(seed, 0)))
		h := history[R]{Case: c, disk: d, kept: c.Live()}
		for life := range 4 {
			if h.life(t, fmt.Sprintf("seed %d, life %d", seed, life)); t.Failed() {
				return
			}
		}
	}
}

type history[R any] struct {
	Case[R]
	disk *Disk
	// kept is what the journal has said it keeps, unsure what was on its way when the
	// power went.
	kept   journal.Live[R]
	unsure []R
}

// life opens the journal, checks what it says, and appends until the power goes.
func (h *history[R]) life(t *testing.T, when string) {
	d, r := h.disk, h.disk.rand
	defer d.Crash()
	d.left, d.fails = 1<<30, 0
	if r.IntN(3) == 0 {
		d.left = r.IntN(8) // while it opens
	}
	j, err := journal.OpenOn(d, "records", h.Kind, h.Live(), spare)
	if err != nil {
		if !errors.Is(err, errCrash) {
			t.Errorf("%s: %v", when, err)
		}
		return
	}
	got, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	h.check(t, got, when)
	d.left = r.IntN(60)
	d.fails = []float64{0, 0.05, 0.3}[r.IntN(3)]
	for d.left >= 0 { // it may also go in a rewriting, after the records were durable
		records := make([]R, 1+r.IntN(6))
		for i := range records {
			records[i] = h.Random(r)
		}
		switch err := j.Append(records); {
		case err == nil:
			for _, x := range records {
				h.kept.Put(x)
			}
			h.unsure = nil
		case errors.Is(err, errCrash), errors.Is(err, errDisk):
			h.unsure = append(h.unsure, records...)
		default:
			t.Fatalf("%s: %v", when, err)
		}
	}
}

// check compares what is there with what has to be, and takes it for the truth.
func (h *history[R]) check(t *testing.T, got []R, when string) {
	kept := h.kept.All()
	for _, x := range got {
		is := func(y R) bool { return h.Same(x, y) }
		if !slices.ContainsFunc(kept, is) && !slices.ContainsFunc(h.unsure, is) {
			t.Errorf("%s: %v is believed, which nobody was told", when, x)
		}
	}
	for _, x := range kept {
		if !slices.ContainsFunc(got, func(y R) bool { return h.Same(x, y) }) &&
			!slices.ContainsFunc(h.unsure, func(y R) bool { return h.Rivals(x, y) }) {
			t.Errorf("%s: %v is lost", when, x)
		}
	}
	h.kept, h.unsure = h.Live(), nil
	for _, x := range got {
		h.kept.Put(x)
	}
}
