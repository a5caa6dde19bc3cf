package main

import "testing"

// One round that went wrong, or too well, decides nothing.
func TestTheMedianDecides(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		ours, theirs []float64
		want         spread
		verdict      string
	}{
		{"one", []float64{3}, []float64{2}, spread{1.5, 1.5, 1.5}, "met"},
		{"a lucky round", []float64{10, 40, 10}, []float64{10, 10, 10}, spread{1, 1, 4}, "missed"},
		{"an unlucky round", []float64{20, 1, 20}, []float64{10, 10, 10}, spread{2, 0.1, 2}, "met"},
		{"a slow moment, for both", []float64{20, 2, 22}, []float64{10, 1, 10}, spread{2, 2, 2.2}, "met"},
		{"two rounds", []float64{10, 30}, []float64{10, 10}, spread{2, 1, 3}, "met"},
	} {
		got := ratio(c.ours, c.theirs)
		if got != c.want || verdict(got, 1.5) != c.verdict {
			t.Errorf("%s: got %v, %s, want %v, %s", c.name, got, verdict(got, 1.5), c.want, c.verdict)
		}
	}
}

func TestMeasurementsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	all := []float64{3, 1, 2}
	if got, want := spreadOf(all).text("%.0f"), "2 (1 to 3)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if all[0] != 3 {
		t.Errorf("they are %v now", all)
	}
}
