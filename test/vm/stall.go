package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// lostTimer is what a kernel says whose timer was due long ago and never came.
var lostTimer = regexp.MustCompile(`rcu: .* kthread timer wakeup didn't happen`)

// reportLostTimer waits for a guest whose processor's timer stands still and puts on its
// console what the emulator knows of each local APIC: without a look at it from outside,
// nobody can tell an interrupt that the emulator lost from a host that was too busy
// (test/qemu/README.md).
func (g *Guest) reportLostTimer() {
	if _, err := g.Console.Wait(context.Background(), 0, lostTimer); err != nil {
		return // It ended, or something else broke, which the scenario says.
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for cpu := range g.CPUs {
		text, err := g.monitor(ctx, fmt.Sprintf("info lapic %d", cpu))
		if err != nil {
			text = err.Error()
		}
		g.Console.add(fmt.Sprintf("\n[harness] local APIC %d, while the guest misses a timer: %s\n", cpu, strings.ReplaceAll(text, "\r\n", "\n[harness] ")))
	}
}

// monitor runs a command of the emulator's monitor for people.
func (g *Guest) monitor(ctx context.Context, command string) (string, error) {
	returned, err := g.ask(ctx, "human-monitor-command", map[string]any{"command-line": command})
	if err != nil {
		return "", err
	}
	var text string
	if err := json.Unmarshal(returned, &text); err != nil {
		return "", fmt.Errorf("controlling guest %s: %s: %w", g.Name, command, err)
	}
	return text, nil
}
