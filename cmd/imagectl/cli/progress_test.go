package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestProgress has a download of 100 MiB of which 40 were there already.
func TestProgress(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		terminal bool
		want     []string
	}{
		"lines": {false, []string{
			"fetching a\n",
			"fetching b\n",
			"fetching a: 70.0 MiB of 100.0 MiB, 1.0 MiB/s\n",
			"a: fetching x: 404; trying the next mirror\n",
		}},
		"a terminal": {true, []string{
			"\r\x1b[Kfetching a  40.0 MiB of 100.0 MiB",
			"\r\x1b[Kfetching b  1 B",
			"\r\x1b[Kfetching a  50.0 MiB of 100.0 MiB, 1.0 MiB/s",
			"\r\x1b[Kfetching a  70.0 MiB of 100.0 MiB, 1.0 MiB/s",
			"\r\x1b[Ka: fetching x: 404; trying the next mirror\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			at := time.Unix(0, 0)
			p := newProgress(&out)
			p.now, p.terminal = func() time.Time { return at }, tc.terminal
			a, b := p.watch("a"), p.watch("b")
			a.Progress(40*mib, 100*mib)
			b.Progress(1, -1)
			at = at.Add(10 * time.Second)
			a.Progress(50*mib, 100*mib)
			a.Progress(50*mib+1, 100*mib)
			at = at.Add(20 * time.Second)
			a.Progress(70*mib, 100*mib)
			a.Skipped(errors.New("fetching x: 404"))
			if got, want := out.String(), strings.Join(tc.want, ""); got != want {
				t.Errorf("got %q\nwant %q", got, want)
			}
		})
	}
}
