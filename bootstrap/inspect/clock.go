package inspect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

const (
	busSocket = "/run/dbus/system_bus_socket"
	// The time service of Flatcar (org.freedesktop.timesync1(5)).
	timesync       = "org.freedesktop.timesync1"
	timesyncObject = "/org/freedesktop/timesync1"
	timesyncSync   = "/run/systemd/timesync/synchronized" // touched with each sync
)

// Time says whether the clock is kept, and what systemd-timesyncd, if it runs, says of its
// source; a note says why that is missing.
func (s *System) Time(ctx context.Context) (*api.TimeResponse, error) {
	out := &api.TimeResponse{}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return nil, fmt.Errorf("asking the kernel for its clock: %w", err)
	}
	now := s.Now()
	out.Now = timestamppb.New(now)
	out.Synchronised = state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0
	out.MaxError = durationpb.New(time.Duration(tx.Maxerror) * time.Microsecond)
	// The battery-backed clock counts whole seconds.
	if n := s.number("/sys/class/rtc/rtc0/since_epoch"); n > 0 {
		out.RtcAhead = durationpb.New(time.Unix(int64(n), 0).Sub(now.Truncate(time.Second)))
	}
	if st, err := os.Stat(s.path(timesyncSync)); err == nil {
		out.LastSync = timestamppb.New(st.ModTime())
	}
	if err := s.timesync(ctx, out); err != nil {
		out.Note = clean(err.Error())
	}
	return out, nil
}

// timesync asks systemd-timesyncd. The bus would start it if it did not run, and this must
// change nothing: so it is asked only when somebody has its name.
func (s *System) timesync(ctx context.Context, out *api.TimeResponse) error {
	c, err := dialBus(ctx, s.path(busSocket), true)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no message bus, so no time service says what its source is")
	} else if err != nil {
		return fmt.Errorf("asking the message bus: %w", err)
	}
	defer c.Close()
	var runs bool
	if err := c.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, timesync).Store(&runs); err != nil {
		return fmt.Errorf("asking the message bus for %s: %w", timesync, err)
	}
	if !runs {
		return errors.New("systemd-timesyncd does not run; another time service may, which says no source here")
	}
	var p map[string]godbus.Variant
	err = c.Object(timesync, timesyncObject).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", godbus.FlagNoAutoStart, timesync+".Manager").Store(&p)
	if err != nil {
		return fmt.Errorf("asking systemd-timesyncd: %w", err)
	}
	out.Source, _ = p["ServerName"].Value().(string)
	out.Source = clean(out.Source)
	var address struct {
		Family int32
		IP     []byte
	}
	if err := p["ServerAddress"].Store(&address); err == nil {
		if ip, ok := netip.AddrFromSlice(address.IP); ok {
			out.SourceAddress = ip.String()
		}
	}
	var m ntpMessage
	if err := p["NTPMessage"].Store(&m); err != nil || m.Destination == 0 {
		return errors.New("systemd-timesyncd has had no answer from its source yet")
	}
	out.Stratum = m.Stratum
	out.Offset = durationpb.New(m.offset())
	return nil
}

// ntpMessage is the last answer of the source (org.freedesktop.timesync1(5), NTPMessage):
// times in microseconds since 1970.
type ntpMessage struct {
	Leap, Version, Mode, Stratum           uint32
	Precision                              int32
	RootDelay, RootDispersion              uint64
	Reference                              []byte
	Origin, Receive, Transmit, Destination uint64
	Ignored                                bool
	PacketCount, Jitter                    uint64
}

// offset is RFC 5905's: ((T2 - T1) + (T3 - T4)) / 2.
func (m ntpMessage) offset() time.Duration {
	a, b := int64(m.Receive)-int64(m.Origin), int64(m.Transmit)-int64(m.Destination)
	return time.Duration((a+b)/2) * time.Microsecond
}
