package admit

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func after(s float64) time.Time { return noon.Add(time.Duration(s * float64(time.Second))) }

func card4(i int) MAC { return MAC{2, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)} }

// ask is a DISCOVER: asked and remembered.
func ask(l *Line, i int, listed bool, at time.Time) Verdict {
	v := l.Ask(card4(i), listed, at)
	l.Note(card4(i), listed, v, at)
	return v
}

func TestWhoIsAloneIsLetIn(t *testing.T) {
	t.Parallel()
	var l Line
	for i, s := range []float64{0, 4, 12, 28, 65, 69, 3600} { // its offers are lost, it begins again, and an hour later
		v := ask(&l, 1, false, after(s))
		want := []time.Duration{4, 8, 16, 32, 4, 8, 4}[i] * time.Second
		if !v.Admitted || v.Wait != 0 || v.Window != want {
			t.Errorf("at %v: %+v, want window %v", s, v, want)
		}
	}
	if got := l.Usage(after(3600)); got != (Usage{1, firstRate}) {
		t.Errorf("usage %+v: one machine counts once", got)
	}
	l.Done(card4(1), after(3606))
	if got := l.Usage(after(3606)); got.Admitted != 0 {
		t.Errorf("usage %+v after it has loaded", got)
	}
}

func TestInventedCardsLeavePlacesToListedMachines(t *testing.T) {
	t.Parallel()
	var l Line
	let := 0
	for i := range 100_000 {
		if ask(&l, i, false, noon).Admitted {
			let++
		}
	}
	if want := int((patience/unlisted).Seconds()*firstRate) + firstRate; let == 0 || let > want {
		t.Errorf("%d unlisted machines were let in, want at most %d", let, want)
	}
	if len(l.cards) > maxStrangers {
		t.Errorf("%d cards are remembered", len(l.cards))
	}
	for i := range 500 {
		if v := ask(&l, 1<<24+i, true, noon); !v.Admitted {
			t.Fatalf("listed machine %d: %+v", i, v)
		}
	}
	if ask(&l, 1<<25, true, after(3600)); len(l.cards) != 1 || len(l.due) != 1 || l.strangers != 0 {
		t.Errorf("an hour later %d cards, %d seconds and %d strangers are remembered", len(l.cards), len(l.due), l.strangers)
	}
}

func TestRateFollowsWhatIsSeen(t *testing.T) {
	t.Parallel()
	load := func(l *Line, from, seconds, perSecond int, crowded bool) {
		for i := range seconds * perSecond {
			at := after(float64(from) + float64(i)/float64(perSecond))
			if crowded {
				l.Crowded(at)
			}
			l.Done(card4(i), at)
		}
	}
	for _, c := range []struct {
		name      string
		perSecond int
		crowded   bool
		min, max  float64
	}{
		{"a faster server", 400, false, 380, 410},
		{"few machines boot", 3, false, firstRate, firstRate},
		{"few programs are sent although machines wait", 20, true, 19, 22},
		{"next to none", 1, true, leastRate, leastRate},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var l Line
			load(&l, 0, 40, c.perSecond, c.crowded)
			if got := l.Usage(after(41)).Rate; got < c.min || got > c.max {
				t.Errorf("rate %.1f, want %.1f to %.1f", got, c.min, c.max)
			}
			load(&l, 10_000, 1, 1, true) // hours later one comes and waits: nothing is learned
			if got := l.Usage(after(10_002)).Rate; got < c.min || got > c.max {
				t.Errorf("rate %.1f after a pause", got)
			}
		})
	}
}

// A rack is switched on within a second. Each machine's firmware asks after 4, 8, 16
// and 32 s, takes its offer at the end of such a time, gives up what has not come
// after 24 s, and begins again. The server sends programs one after the other, in the
// order they are asked for.
func TestRackLoadsItsProgramsWithoutBeginningAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		machines int
		rate     float64
		// restarts is how many begin again at most, without the line at least.
		restarts, without int
	}{
		{1000, 100, 0, 0},
		{3000, 100, 0, 400},
		{6667, 100, 1400, 5000},
		{6667, 400, 0, 0},
		{2000, 20, 1300, 2500},
	} {
		t.Run(fmt.Sprintf("%d machines, %v a second", c.machines, c.rate), func(t *testing.T) {
			t.Parallel()
			with, last := rack(t, &Line{}, c.machines, c.rate)
			without, lastWithout := rack(t, nil, c.machines, c.rate)
			t.Logf("%d begin again, the last has its program after %s; without the line %d and %s", with, last, without, lastWithout)
			if with > c.restarts || without < c.without {
				t.Errorf("%d began again, want at most %d; without the line %d, which shall be %d at least", with, c.restarts, without, c.without)
			}
		})
	}
}

// rack boots machines and returns how often firmware began again, and when the last
// one had its program. A nil line lets everybody in.
func rack(t *testing.T, l *Line, machines int, rate float64) (restarts int, last time.Duration) {
	const tftpPatience, restart = 24 * time.Second, 5 * time.Second
	r := rand.New(rand.NewPCG(1, 2))
	var q events
	for i := range machines {
		heap.Push(&q, event{at: noon.Add(time.Duration(r.Int64N(int64(time.Second)))), machine: i})
	}
	one := time.Duration(float64(time.Second) / rate)
	free := noon // when the server is done with all it has taken
	for q.Len() > 0 {
		e := heap.Pop(&q).(event)
		switch {
		case e.at.Sub(noon) > time.Hour:
			t.Fatal("they do not all boot within an hour")
		case e.loaded:
			last = max(last, e.at.Sub(noon))
			if l != nil {
				l.Done(card4(e.machine), e.at)
			}
		case e.loads:
			if free.Before(e.at) {
				free = e.at
			}
			if wait := free.Sub(e.at); wait > tftpPatience {
				restarts++
				heap.Push(&q, event{at: e.at.Add(tftpPatience + restart), machine: e.machine})
				continue
			} else if l != nil && wait > 0 {
				l.Crowded(e.at)
			}
			free = free.Add(one)
			heap.Push(&q, event{at: free, machine: e.machine, loaded: true})
		default:
			window := firstWindow << e.try
			if l == nil || ask(l, e.machine, true, e.at).Admitted {
				heap.Push(&q, event{at: e.at.Add(window), machine: e.machine, loads: true})
			} else if e.try++; e.try < 4 {
				heap.Push(&q, event{at: e.at.Add(window), machine: e.machine, try: e.try})
			} else {
				restarts++
				heap.Push(&q, event{at: e.at.Add(window + restart), machine: e.machine})
			}
		}
	}
	return restarts, last
}

type event struct {
	at            time.Time
	machine, try  int
	loads, loaded bool
}

type events []event

func (q events) Len() int           { return len(q) }
func (q events) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q events) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)        { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	e := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return e
}

// The programs of HTTP boot have another patience and another rate.
func TestALineHasItsOwnPatienceAndRate(t *testing.T) {
	t.Parallel()
	let := func(l *Line) (n int) {
		for i := range 10_000 {
			if ask(l, i, true, noon).Admitted {
				n++
			}
		}
		return n
	}
	usual, impatient, slow := &Line{}, &Line{Patience: 4 * time.Second}, &Line{Patience: 4 * time.Second, First: 8}
	if a, b, c := let(usual), let(impatient), let(slow); b > a/4+2 || c > b/8+2 || c < 32 {
		t.Errorf("let in: %d, impatient %d, slow %d", a, b, c)
	}
	// Machines wait, and nothing is sent: the rate falls as far as it may.
	least := &Line{First: 8, Least: 0.25}
	for s := range 100 {
		least.Crowded(after(float64(s)))
	}
	if got := least.Usage(after(100)).Rate; got != 0.25 {
		t.Errorf("the rate fell to %v", got)
	}
}
