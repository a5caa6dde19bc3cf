package libvirt

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
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
			told, all := 0, 0
			c := &compared{want: tt.want, tell: func(n int) { told += n }}
			for _, p := range tt.got {
				all += len(p)
				if n, err := c.Write([]byte(p)); n != len(p) || err != nil {
					t.Fatalf("Write of %q = %d, %v", p, n, err)
				}
			}
			if c.same != tt.same || !errors.Is(c.err, tt.err) || told != all {
				t.Errorf("%d are the same, %v, %d were told of; want %d, %v, %d", c.same, c.err, told, tt.same, tt.err, all)
			}
		})
	}
}
