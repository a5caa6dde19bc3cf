// Package uml runs a script as the first process of a Linux that is itself a program
// (Debian's user-mode-linux): for what the kernel of the machine that tests may lack, such as
// bonds, VLANs, and network cards with a MAC address of their own. It needs root.
package uml

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/vm"
)

// Said is what a script printed, by the first word of lines that begin with @@.
type Said map[string][]string

// Run starts a Linux with this machine's files, read-only, the script as its first process
// and work, where the kernel's modules are too, as $WORK. It ends with a line "@@end". More
// arguments are the kernel's: Cable makes those of network cards.
func Run(t *testing.T, script, work string, args ...string) Said {
	t.Helper()
	if _, err := os.Stat("/lib/systemd/systemd-networkd"); err != nil {
		t.Fatalf("a judge is missing: %v (make deps installs it)", err)
	}
	// It takes 20 seconds here; beside a hundred other programs, more.
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	out, err := vm.RunLinux(ctx, script, work, args...)
	if err != nil {
		t.Fatalf("%v; it printed:\n%s", err, out)
	}
	s := Said{}
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "@@"); ok {
			word, value, _ := strings.Cut(strings.TrimRight(rest, "\r\n"), " ")
			s[word] = append(s[word], value)
		}
	}
	if s["end"] == nil {
		t.Fatalf("the script did not come to its end:\n%s", out)
	}
	return s
}

// Cable is a card with a MAC address and the end of a cable: what it sends from one UDP port
// of the loopback interface arrives at another, where the other end is. The test has to be
// alone in its network namespace, as make has it.
func Cable(card, mac, from, to string) string {
	return card + "=ucast," + mac + ",127.0.0.1," + from + "," + to
}

// JSON decodes the one value of a word.
func JSON[T any](t *testing.T, s Said, word string) T {
	t.Helper()
	var v T
	if len(s[word]) != 1 {
		t.Fatalf("%d lines of %s", len(s[word]), word)
	}
	if err := json.Unmarshal([]byte(s[word][0]), &v); err != nil {
		t.Fatalf("%s: %v: %s", word, err, s[word][0])
	}
	return v
}
