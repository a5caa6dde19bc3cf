package vm

import (
	"context"
	"errors"
	"regexp"
	"testing"
)

// A serial port hands over a line in whatever pieces it likes.
func TestWaitLooksAtWholeLinesOnly(t *testing.T) {
	t.Parallel()
	size := regexp.MustCompile(`root-MiB=(\d+)`)
	over, cancel := context.WithCancel(t.Context())
	cancel()

	c := newConsole()
	c.add("booting\r\n\x1b[0mclone: root-MiB=56")
	if got, err := c.Wait(over, 0, size); !errors.Is(err, context.Canceled) {
		t.Errorf("half a line: got %q, %v", got, err)
	}
	c.add("97\r")
	if got, err := c.Wait(over, 0, size); !errors.Is(err, context.Canceled) {
		t.Errorf("a line without its end: got %q, %v", got, err)
	}
	c.add("\nlogin: ")
	if got, err := c.Wait(over, 0, size); err != nil || got[1] != "5697" {
		t.Errorf("the whole line: got %q, %v; want 5697", got, err)
	}
	if got, err := c.Wait(over, c.Len(), regexp.MustCompile("login")); !errors.Is(err, context.Canceled) {
		t.Errorf("a prompt: got %q, %v", got, err)
	}
}

func TestWaitTakesTheLastLineOfAGuestThatEnded(t *testing.T) {
	t.Parallel()
	c := newConsole()
	c.add("one\ntwo")
	c.end()
	if got, err := c.Wait(t.Context(), 0, regexp.MustCompile("two$")); err != nil || got[0] != "two" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := c.Wait(t.Context(), 0, regexp.MustCompile("three")); err == nil {
		t.Error("a line that never came was found")
	}
	c = newConsole()
	c.add("Kernel panic - not syncing: no init found")
	c.end()
	if _, err := c.Wait(t.Context(), 0, regexp.MustCompile("login")); !errors.Is(err, ErrBad) {
		t.Errorf("a panic on the last line: got %v", err)
	}
}
