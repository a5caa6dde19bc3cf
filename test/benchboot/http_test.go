package main

import "testing"

// Flat from 10 to 100,000 is said of the size that is the farthest from it, by the medians.
func TestTheWorstSizeCounts(t *testing.T) {
	t.Parallel()
	few := &asked{said: "10", script: []float64{100, 100, 100}, ignition: []float64{50, 60, 70}}
	dips := &asked{said: "1,000", script: []float64{90, 70, 75}, ignition: []float64{60, 60, 60}}
	unlucky := &asked{said: "10,000", script: []float64{90, 1, 90}, ignition: []float64{60, 59, 61}}
	most := &asked{said: "100,000", script: []float64{80, 80, 80}, ignition: []float64{58, 59, 61}}
	all := []*asked{dips, unlucky, most}
	if got := worst(few, all, (*asked).scripts); got != dips {
		t.Errorf("scripts: got %s, want 1,000", got.said)
	}
	if got := worst(few, all, (*asked).configs); got != most {
		t.Errorf("Ignition: got %s, want 100,000", got.said)
	}
}
