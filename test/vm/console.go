package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Console collects what a guest prints, line by line, without escape sequences.
// It is safe for concurrent use.
type Console struct {
	mu      sync.Mutex
	lines   []string
	partial string
	ended   bool
	changed chan struct{}
}

func newConsole() *Console { return &Console{changed: make(chan struct{})} }

// Follow collects what arrives at r, the console of a guest that somebody else
// started, until it ends.
func Follow(r io.Reader) *Console {
	c := newConsole()
	go func() {
		c.follow(r)
		c.end()
	}()
	return c
}

// escapes are the terminal control sequences of ECMA-48 that firmware, GRUB and
// systemd print.
var escapes = regexp.MustCompile("\x1b(?:\\[[0-9;?=]*[A-Za-z]|[()][0-9A-B]|[=>78cDEHM])")

// bad are console lines after which a scenario must not be called good, with
// what they mean. The table follows flatcar/mantle's kola/harness.go.
var bad = []struct {
	line *regexp.Regexp
	what string
}{
	{regexp.MustCompile(`Kernel panic - not syncing`), "kernel panic"},
	{regexp.MustCompile(`kernel BUG at`), "kernel bug"},
	{regexp.MustCompile(`Entering emergency mode|emergency\.target`), "emergency mode"},
	{regexp.MustCompile(`device-mapper: verity: .*(corrupted|failed)`), "verity corruption"},
	{regexp.MustCompile(`Out of memory: Killed process`), "out of memory"},
	{regexp.MustCompile(`\[FAILED\] Failed to start`), "a unit failed"},
	{regexp.MustCompile(`Ignition failed|ignition: .*\bCRITICAL\b`), "Ignition failed"},
	{regexp.MustCompile(`initrd: BOOT STOPPED`), "the initrd stopped the boot"},
}

func (c *Console) follow(r io.Reader) {
	in := bufio.NewReaderSize(r, 4096)
	buf := make([]byte, 4096)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			c.add(string(buf[:n]))
		}
		if err != nil {
			return
		}
	}
}

func (c *Console) add(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := c.partial + s
	for {
		i := strings.IndexByte(text, '\n')
		if i < 0 {
			break
		}
		c.lines = append(c.lines, clean(text[:i]))
		text = text[i+1:]
	}
	c.partial = text
	c.wake()
}

func clean(s string) string {
	s = escapes.ReplaceAllString(s, "")
	return strings.TrimRight(strings.ReplaceAll(s, "\r", ""), " ")
}

func (c *Console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.wake()
}

// wake tells everybody who waits; the caller holds mu.
func (c *Console) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Len is the number of complete lines so far; pass it to Wait to look only at
// what comes later.
func (c *Console) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lines)
}

// Tail returns the last n lines.
func (c *Console) Tail(n int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := append(append([]string{}, c.lines...), clean(c.partial))
	return all[max(0, len(all)-n):]
}

// ErrBad is wrapped by errors about a console line that no good run prints.
var ErrBad = errors.New("the guest's console shows a failure")

// Wait returns the first match of re, with its groups, in the lines from index
// from on. A line counts when it is complete, or the guest's last: a group that
// matches "5697" would match "56" in what has arrived of it. Wait fails when the
// guest ends, when ctx ends, and with ErrBad when the console shows that something
// broke.
func (c *Console) Wait(ctx context.Context, from int, re *regexp.Regexp) ([]string, error) {
	next := from
	for {
		c.mu.Lock()
		lines, ended, changed := c.lines[min(next, len(c.lines)):], c.ended, c.changed
		if ended {
			lines = append(slices.Clip(lines), clean(c.partial))
		}
		c.mu.Unlock()
		for _, line := range lines {
			if m := re.FindStringSubmatch(line); m != nil {
				return m, nil
			}
			if what := badness(line); what != "" {
				return nil, fmt.Errorf("waiting for %q: %w: %s: %s", re, ErrBad, what, line)
			}
			next++
		}
		if ended {
			return nil, fmt.Errorf("waiting for %q: the guest ended; its last lines:\n%s", re, strings.Join(c.Tail(15), "\n"))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %q: %w; the console's last lines:\n%s", re, context.Cause(ctx), strings.Join(c.Tail(15), "\n"))
		case <-changed:
		}
	}
}

// Bad returns the lines that no good run prints, each with what it means.
func (c *Console) Bad() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, line := range c.lines {
		if what := badness(line); what != "" {
			out = append(out, what+": "+line)
		}
	}
	return out
}

func badness(line string) string {
	for _, b := range bad {
		if b.line.MatchString(line) {
			return b.what
		}
	}
	return ""
}
