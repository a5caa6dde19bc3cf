package audit

import (
	"fmt"
	"testing"
	"time"
)

func head(seq uint64, of string) Head {
	return Head{Tip: Tip{Seq: seq, Hash: fmt.Sprintf("%s-%d", of, seq)}, Signature: []byte("s")}
}

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// A log that grows, goes back and grows again, told as a story.
func TestAMemoryKeepsWhatTheLogDoesNotHoldAnyMore(t *testing.T) {
	t.Parallel()
	var m Memory
	step := func(when string, h Head, changed bool, heads, lost string) {
		t.Helper()
		var got bool
		if m, got = m.See(h, noon); got != changed {
			t.Errorf("%s: changed %v", when, got)
		}
		say := func(all []Seen) (out string) {
			for _, s := range all {
				out += s.Hash + " "
			}
			return out
		}
		if h, l := say(m.Heads), say(m.Lost); h != heads || l != lost {
			t.Errorf("%s: remembers %q, lost %q; want %q, %q", when, h, l, heads, lost)
		}
	}
	step("the first", head(5, "a"), true, "a-5 ", "")
	step("the same", head(5, "a"), false, "a-5 ", "")
	step("it grows", head(9, "a"), true, "a-5 a-9 ", "")
	step("its end is cut off", head(7, "a"), true, "a-5 a-7 ", "a-9 ")
	step("its last entry is another", head(7, "b"), true, "a-5 b-7 ", "a-9 a-7 ")
	step("it grows again, past what was lost", head(12, "b"), true, "a-5 b-7 b-12 ", "a-9 a-7 ")
	step("it begins anew", head(1, "c"), true, "c-1 ", "a-9 a-7 b-12 ")
}

// Who goes to and fro does not push out what was lost first.
func TestAMemoryIsBounded(t *testing.T) {
	t.Parallel()
	var m Memory
	for i := range 3 * lostHeads {
		m, _ = m.See(head(uint64(100+i%2), fmt.Sprint(i)), noon)
	}
	if len(m.Lost) != lostHeads || m.Lost[0].Hash != "1-101" {
		t.Errorf("%d lost, the first is %s", len(m.Lost), m.Lost[0].Hash)
	}
	m = Memory{}
	const times = 8 * 450 // a day
	for i := range times {
		m, _ = m.See(head(uint64(i+1), "a"), noon.Add(time.Duration(i)*3*time.Hour))
	}
	if n := len(m.Heads); n > dailyHeads+newestHeads || n < dailyHeads {
		t.Errorf("%d heads", n)
	}
	for i := 1; i < len(m.Heads)-newestHeads; i++ {
		if d := m.Heads[i].At.Sub(m.Heads[i-1].At); d != 24*time.Hour {
			t.Fatalf("two that stay are %s apart", d)
		}
	}
	if last := m.Heads[len(m.Heads)-1]; last.Seq != times {
		t.Errorf("the newest is %d", last.Seq)
	}
}
