package cli

import (
	"slices"
	"testing"
)

// What is as it is in the program's own file is given back, and nothing else: a page that was
// written to would be lost.
func TestPagesOfTheProgramsFile(t *testing.T) {
	const smaps = `00400000-022f4000 r-xp 00000000 fe:00 1311 /usr/bin/imagectl
Rss:               18000 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
022f4000-04d38000 r--p 01ef4000 fe:00 1311 /usr/bin/imagectl
Anonymous:             0 kB
04d38000-04d39000 r--p 04938000 fe:00 1311 /usr/bin/imagectl
Private_Dirty:         4 kB
Anonymous:             4 kB
04d39000-04d3a000 r--p 04939000 fe:00 1311 /usr/bin/imagectl
Anonymous:             0 kB
Swap:                  4 kB
04d3a000-04e25000 rw-p 0493a000 fe:00 1311 /usr/bin/imagectl
Anonymous:             0 kB
04e25000-04ebd000 rw-p 00000000 00:00 0
Anonymous:           400 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 1400 /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000001000-7f0000002000 r--p 00000000 fe:00 1500 /usr/bin/imagectl (deleted)
nonsense
`
	want := []pages{{0x400000, 0x1ef4000}, {0x22f4000, 0x2a44000}}
	if got := ownPages(smaps, "/usr/bin/imagectl"); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	if got := ownPages(smaps, "/usr/bin/other"); len(got) > 0 {
		t.Errorf("another program's are %x", got)
	}
	// It goes on where it was.
	forgetStart()
}
