package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// recordMax is the longest record of /dev/kmsg (CONSOLE_EXT_LOG_MAX in
// include/linux/printk.h is 8192).
const recordMax = 8192

// tailBytes bounds what is kept of a log to be able to send its last lines.
const tailBytes = 8 << 20

// Dmesg sends the records that the kernel keeps, or the last so many, and with follow
// those that come until ctx ends, which is no error.
func (s *System) Dmesg(ctx context.Context, req *api.DmesgRequest, send func(*api.DmesgResponse) error) error {
	f, err := os.OpenFile(s.path("/dev/kmsg"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("reading the kernel's log: %w", err)
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	boot, err := s.boot()
	if err != nil {
		return fmt.Errorf("reading the kernel's log: %w", err)
	}
	k := kmsg{f: f}
	last := newTail[*api.DmesgResponse](int(req.GetLines()), tailBytes)
	for {
		b, err := k.next(false)
		if errors.Is(err, errNoMore) {
			break
		} else if err != nil {
			return ended(ctx, err)
		}
		if m, ok := record(b, boot); ok {
			m.Gap, k.gap = k.gap, false
			last.add(m, len(m.GetLine()))
		}
	}
	for m := range last.all() {
		if err := send(m); err != nil {
			return err
		}
	}
	for req.GetFollow() {
		b, err := k.next(true)
		if err != nil {
			return ended(ctx, err)
		}
		if m, ok := record(b, boot); ok {
			m.Gap, k.gap = k.gap, false
			if err := send(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// ended is the error of a stream whose context may have ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// boot is when the kernel's clock began.
func (s *System) boot() (time.Time, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Time{}, err
	}
	return s.Now().Add(-time.Duration(ts.Nano())), nil
}

var errNoMore = errors.New("there is no more")

// kmsg is /dev/kmsg, of which each read is one record.
type kmsg struct {
	f   *os.File
	gap bool
	buf [recordMax]byte
}

// next is the next record, until the one after it. Without wait, errNoMore says that there
// is none yet.
func (k *kmsg) next(wait bool) ([]byte, error) {
	raw, err := k.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		var n int
		var errno error
		err := raw.Read(func(fd uintptr) bool {
			n, errno = unix.Read(int(fd), k.buf[:])
			return !wait || !errors.Is(errno, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return nil, fmt.Errorf("reading the kernel's log: %w", err)
		case errors.Is(errno, unix.EAGAIN) || errno == nil && n == 0:
			return nil, errNoMore
		case errors.Is(errno, unix.EPIPE):
			k.gap = true // what came next was overwritten; the one after is there
		case errors.Is(errno, unix.EINTR):
		case errors.Is(errno, unix.EINVAL):
			// A record longer than the buffer; it was skipped.
			k.gap = true
		case errno != nil:
			return nil, fmt.Errorf("reading the kernel's log: %w", &fs.PathError{Op: "read", Path: "/dev/kmsg", Err: errno})
		default:
			return k.buf[:n], nil
		}
	}
}

// record reads one: "PRIORITY,SEQ,MICROSECONDS,FLAGS[,...];TEXT\n", and lines with a space
// before them that say more of it (Documentation/ABI/testing/dev-kmsg).
func record(b []byte, boot time.Time) (*api.DmesgResponse, bool) {
	head, rest, ok := bytes.Cut(b, []byte(";"))
	if !ok {
		return nil, false
	}
	f := strings.Split(string(head), ",")
	if len(f) < 4 {
		return nil, false
	}
	priority, err1 := strconv.ParseUint(f[0], 10, 16)
	seq, err2 := strconv.ParseUint(f[1], 10, 64)
	micros, err3 := strconv.ParseInt(f[2], 10, 64)
	if errors.Join(err1, err2, err3) != nil || micros < 0 || micros > (1<<62)/1000 {
		return nil, false
	}
	text, _, _ := bytes.Cut(rest, []byte("\n"))
	since := time.Duration(micros) * time.Microsecond
	return &api.DmesgResponse{
		At: timestamppb.New(boot.Add(since)), SinceBoot: durationpb.New(since),
		Level: uint32(priority & 7), Facility: uint32(priority >> 3), Seq: seq, Line: clean(unhex(string(text))),
	}, true
}

// unhex undoes how the kernel writes what is not printable: \xNN.
func unhex(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
