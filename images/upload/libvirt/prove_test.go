package libvirt

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/sparse"
)

func TestTheLastByteOfARange(t *testing.T) {
	t.Parallel()
	zeros := strings.Repeat("\x00", 2*proof)
	for name, tt := range map[string]struct {
		file string
		r    sparse.Range
		want int64
	}{
		"at its end":             {"abc", sparse.Range{Length: 3}, 3},
		"zeros behind it":        {"a" + zeros + "b" + zeros, sparse.Range{Length: 4*proof + 2}, 2*proof + 2},
		"another one behind":     {"ab\x00d", sparse.Range{Length: 3}, 2},
		"nothing but zeros":      {"a" + zeros, sparse.Range{Offset: 1, Length: 2 * proof}, 1},
		"at its beginning":       {"x" + "a" + zeros, sparse.Range{Offset: 1, Length: 2*proof + 1}, 2},
		"on a piece's beginning": {zeros[:proof] + "a" + zeros[:proof-1], sparse.Range{Length: 2 * proof}, proof + 1},
	} {
		if got, err := lastByte(strings.NewReader(tt.file), tt.r); got != tt.want || err != nil {
			t.Errorf("%s: %d, %v, want %d", name, got, err, tt.want)
		}
	}
	if _, err := lastByte(strings.NewReader("abc"), sparse.Range{Length: 4}); !errors.Is(err, io.EOF) {
		t.Errorf("of a file that is shorter: %v", err)
	}
}
