package journal_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/imagectl/imagectl/pxe/journal"
)

// Each answer waits for its own records only.
func TestYieldSortsABatchByWhatWasKept(t *testing.T) {
	t.Parallel()
	batch := [][]int{{1, 2}, {3}, {4}, {5, 6}}
	records := func(w []int) []int { return w }
	full := errors.New("the disk is full")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"all was kept", nil, "kept [[1 2] [3] [4] [5 6]] lost [] now [] <nil>"},
		{"others were quicker", fmt.Errorf("writing: %w", &journal.TakenError[int]{Lost: map[int]bool{0: true, 3: true}, Now: []int{7}}), "kept [[3] [5 6]] lost [[1 2] [4]] now [7] <nil>"},
		{"nothing was kept", full, "kept [] lost [] now [] the disk is full"},
	} {
		kept, lost, now, err := journal.Yield(slices.Clone(batch), records, c.err)
		if got := fmt.Sprintf("kept %v lost %v now %v %v", kept, lost, now, err); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}
