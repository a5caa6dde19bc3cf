package vm

import (
	"fmt"
	"os/exec"
	"strings"
)

// Bridge makes a bridge with an address in the current network namespace. The
// scenarios run in a namespace of their own, so it vanishes with them.
func Bridge(name, cidr string) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", name, "type", "bridge", "forward_delay", "0", "stp_state", "0"},
		{"address", "add", cidr, "dev", name},
		{"link", "set", name, "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return nil
}

// Tap makes a tap device on a bridge.
func Tap(name, bridge string) error {
	for _, args := range [][]string{
		{"tuntap", "add", "dev", name, "mode", "tap"},
		{"link", "set", name, "master", bridge, "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return nil
}

// Unplug takes a bridge or a tap device away. One that is not there is as it should be.
func Unplug(name string) {
	if err := ip("link", "show", name); err == nil {
		// What is left in the way of the next rack shows when that is made.
		_ = ip("link", "delete", name)
	}
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("running ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
