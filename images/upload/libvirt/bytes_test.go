package libvirt

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/imagectl/imagectl/images/sparse"
)

func TestWhatIsReadBackIsCompared(t *testing.T) {
	t.Parallel()
	broken := errors.New("the file is gone")
	for name, tt := range map[string]struct {
		want io.Reader
		got  []string
		same int64
		err  error
	}{
		"the same":                   {want: strings.NewReader("abcdef"), got: []string{"abc", "d", "ef"}, same: 6},
		"in other pieces":            {want: iotest.OneByteReader(strings.NewReader("abcdef")), got: []string{"abcd", "ef"}, same: 6},
		"another byte":               {want: strings.NewReader("abcdef"), got: []string{"abc", "dxf"}, same: 4},
		"as before after it":         {want: strings.NewReader("abcdef"), got: []string{"xbc", "def"}},
		"less of it":                 {want: strings.NewReader("abcdef"), got: []string{"abc"}, same: 3},
		"more than there was":        {want: strings.NewReader("abc"), got: []string{"abc", "d"}, same: 3},
		"more, in the last piece":    {want: strings.NewReader("abc"), got: []string{"a", "bcd"}, same: 3},
		"a file that cannot be read": {want: io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)), got: []string{"abc", "def"}, same: 3, err: broken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &compared{want: tt.want}
			for _, p := range tt.got {
				if n, err := c.Write([]byte(p)); n != len(p) || err != nil {
					t.Fatalf("Write of %q = %d, %v", p, n, err)
				}
			}
			if c.same != tt.same || !errors.Is(c.err, tt.err) {
				t.Errorf("%d are the same, %v; want %d, %v", c.same, c.err, tt.same, tt.err)
			}
		})
	}
}

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
