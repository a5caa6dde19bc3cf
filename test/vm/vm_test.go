//go:build root

package vm

import (
	"context"
	"regexp"
	"testing"
	"time"
)

// A guest without a network boots the sentinel disk under both firmwares: this
// tests the sentinel and the console, on which later scenarios rely.
func TestSentinelDiskBootsUnderBothFirmwares(t *testing.T) {
	if err := Bridge("br0", "10.99.0.1/24"); err != nil {
		t.Fatal(err)
	}
	for i, fw := range []Firmware{SeaBIOS, OVMF} {
		t.Run(string(fw), func(t *testing.T) {
			dir := t.TempDir()
			disk := dir + "/disk.raw"
			if err := WriteSentinelDisk(disk, fw); err != nil {
				t.Fatal(err)
			}
			tap := "tap" + string(fw)
			if err := Tap(tap, "br0"); err != nil {
				t.Fatal(err)
			}
			g, err := Start(Config{Name: string(fw), Firmware: fw, Accel: "tcg", CPUs: 1, MemoryMiB: 512,
				Disk: disk, DiskSerial: "sentinel", MAC: "52:54:00:00:00:0" + string(rune('1'+i)), Tap: tap,
				UUID: "00000000-0000-4000-8000-00000000000" + string(rune('1'+i)), Serial: "S1", DiskFirst: true, Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Stop()
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
			defer cancel()
			if _, err := g.Console.Wait(ctx, 0, regexp.MustCompile(regexp.QuoteMeta(Sentinel))); err != nil {
				t.Fatal(err)
			}
			if fw != SeaBIOS {
				return // GRUB's halt ends the guest, and the emulator that is to be asked with it
			}
			from := g.Console.Len()
			g.Console.add("[   30.0] rcu: rcu_preempt kthread timer wakeup didn't happen for 7642 jiffies!\n")
			if _, err := g.Console.Wait(ctx, from, regexp.MustCompile(`\[harness\] ISR`)); err != nil {
				t.Error(err)
			}
		})
	}
}
