//go:build root && clock

package native

import (
	"encoding/binary"
	"os"
	"testing"
	"time"
)

// clock is the file that shifts everybody's time of day.
type clock struct {
	t    *testing.T
	file *os.File
	by   time.Duration
}

func newClock(t *testing.T) *clock {
	t.Helper()
	f, err := os.OpenFile(os.Getenv("IMAGECTL_TEST_CLOCK"), os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("opening the clock that IMAGECTL_TEST_CLOCK names: %v (make native-years makes one)", err)
	}
	c := &clock{t: t, file: f}
	before := time.Now().Round(0)
	c.leap(365 * day)
	if d := time.Now().Round(0).Sub(before); d < 364*day {
		t.Fatalf("this program's clock does not follow %s: it was built without clock/overlay", f.Name())
	}
	c.leap(-365 * day)
	t.Cleanup(func() { _ = f.Close() })
	return c
}

// leap moves everybody's time on.
func (c *clock) leap(d time.Duration) {
	c.t.Helper()
	c.by += d
	// Eight bytes of a page at once: whoever reads sees the old or the new.
	if _, err := c.file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(c.by/time.Second)), 0); err != nil {
		c.t.Fatal(err)
	}
}

// real is the machine's time.
func (c *clock) real() time.Time { return time.Now().Round(0).Add(-c.by) }
