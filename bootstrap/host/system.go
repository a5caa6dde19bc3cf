package host

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Print writes a line to the machine's console, where a person at the screen or
// the serial port sees it. A machine without a console is no error: the journal
// has the same words.
func (h *Host) Print(line string) {
	f, err := os.OpenFile(h.Path("/dev/console"), os.O_WRONLY|os.O_APPEND|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	// The console may be in raw mode: end lines the way a terminal wants them.
	_, _ = fmt.Fprintf(f, "%s\r\n", line)
}

// SetClock sets the system clock.
func (h *Host) SetClock(t time.Time) error {
	if h.Root != "" {
		return nil
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("setting the clock to %s: %w", t.UTC().Format(time.RFC3339), err)
	}
	return nil
}

// ClockKept says whether the kernel takes the system clock to be kept by NTP: STA_UNSYNC is
// clear (adjtimex(2)). Setting the clock sets it, and so do some hours without a source:
// kernel/time/ntp.c. Of a directory it is false.
func (h *Host) ClockKept() bool {
	if h.Root != "" {
		return false
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	return err == nil && state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0
}

// BatteryClock is what the machine's battery-backed clock says, which counts whole seconds of
// UTC; false when it has none.
func (h *Host) BatteryClock() (time.Time, bool) {
	b, err := h.ReadFile("/sys/class/rtc/rtc0/since_epoch")
	if err != nil {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return time.Unix(n, 0), err == nil && n > 0
}

// SetHostname sets the running kernel's host name; /etc/hostname is a file like
// any other.
func (h *Host) SetHostname(name string) error {
	if h.Root != "" {
		return os.WriteFile(h.Path("/proc/sys/kernel/hostname"), []byte(name+"\n"), 0o644)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("setting the host name to %s: %w", name, err)
	}
	return nil
}

// PowerOff asks systemd to switch the machine off, and returns at once.
func (h *Host) PowerOff(ctx context.Context) error {
	_, err := h.Run(ctx, Command{Argv: []string{"systemctl", "poweroff"}})
	return err
}

// Reboot asks systemd for an orderly reboot and returns at once. It never
// touches the firmware's boot order.
func (h *Host) Reboot(ctx context.Context) error {
	_, err := h.Run(ctx, Command{Argv: []string{"systemctl", "reboot"}})
	return err
}
