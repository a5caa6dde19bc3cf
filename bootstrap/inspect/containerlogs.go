package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

const (
	// followPause is between two looks for more of a container's log.
	followPause = 250 * time.Millisecond
	// logLineMax bounds a line that a program wrote in pieces, in bytes; the rest is dropped.
	// containerd cuts lines into pieces of 16 KiB.
	logLineMax = 64 << 10
	// logReadMax is how much of a log, from its end, is looked at for its last lines.
	logReadMax = 64 << 20
)

// ContainerLogs sends the last lines of a container's log, and with follow those that come,
// over rotations and restarts, until ctx ends, which is no error. fs.ErrNotExist says that
// there is no such log.
func (s *System) ContainerLogs(ctx context.Context, req *api.ContainerLogsRequest, send func(*api.ContainerLogsResponse) error) error {
	root, err := s.pods()
	if err != nil {
		return fmt.Errorf("reading a container's log: %w", err)
	}
	defer root.Close()
	dir, err := container(root, req)
	if err != nil {
		return fmt.Errorf("reading a container's log: %w", err)
	}
	logs, err := containerLogs(root, dir)
	if err == nil {
		logs, err = wanted(logs, req.GetPrevious())
	}
	if err != nil {
		return fmt.Errorf("reading a container's log: %w", err)
	}
	last := newTail[*api.ContainerLogsResponse](int(req.GetLines()), tailBytes)
	since := req.GetSince().AsTime()
	r := criReader{}
	defer r.close()
	keep := func(m *api.ContainerLogsResponse) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if req.GetSince() == nil || !m.GetAt().AsTime().Before(since) {
			last.add(m, len(m.GetLine()))
		}
		return nil
	}
	for _, l := range logs {
		if err := r.open(root, l.name, max(0, l.size-logReadMax)); errors.Is(err, fs.ErrNotExist) {
			continue // rotated away meanwhile
		} else if err != nil {
			return fmt.Errorf("reading a container's log: %w", err)
		}
		if err := r.read(keep); err != nil {
			return ended(ctx, err)
		}
	}
	for m := range last.all() {
		if err := send(m); err != nil {
			return err
		}
	}
	last = nil
	if !req.GetFollow() {
		return nil
	}
	return ended(ctx, follow(ctx, root, dir, &r, send))
}

// wanted are the files to read: those of the newest start of the container, or of the one
// before it. Only the newest rotated one is not compressed, so there are two at most.
func wanted(logs []logFile, previous bool) ([]logFile, error) {
	start := -1
	if n := len(logs); n > 0 {
		start = logs[n-1].start
	}
	if previous {
		before := -1
		for _, l := range logs {
			if l.start < start {
				before = l.start
			}
		}
		if start = before; start < 0 {
			return nil, fmt.Errorf("there is no log of before the container's last start: %w", fs.ErrNotExist)
		}
	}
	var out []logFile
	for _, l := range logs {
		if l.start == start {
			out = append(out, l)
		}
	}
	return out[max(0, len(out)-2):], nil
}

// follow sends what is written from now on.
func follow(ctx context.Context, root *os.Root, dir string, r *criReader, send func(*api.ContainerLogsResponse) error) error {
	tick := time.NewTicker(followPause)
	defer tick.Stop()
	replaced := false
	for {
		if err := r.read(send); err != nil {
			return err
		}
		logs, err := containerLogs(root, dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the pod is deleted
		} else if err != nil {
			return err
		}
		if n := len(logs); n > 0 && !r.is(root, logs[n-1].name) {
			// Whoever wrote the old file may do so for a moment more: it is read once more
			// before the new one.
			if replaced {
				if err := r.open(root, logs[n-1].name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				replaced = false
				continue
			}
			replaced = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// criReader reads a file in the format of the container runtime interface: lines
// "TIME STREAM TAGS TEXT", where the tag P says that the line goes on in the next of its stream
// (kubernetes, staging/src/k8s.io/cri-client/pkg/logs).
type criReader struct {
	f *os.File
	// rest is the begin of a line whose end is not there yet; skip says that it was too long
	// and is dropped up to there.
	rest []byte
	skip bool
	// parts are the pieces of a line, by stream.
	parts map[string][]byte
}

// open goes on with another file from an offset; behind the begin of a file, with the next
// whole line.
func (r *criReader) open(root *os.Root, name string, offset int64) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	r.close()
	r.f, r.rest, r.skip = f, nil, offset > 0
	if r.parts == nil {
		r.parts = map[string][]byte{}
	}
	_, err = f.Seek(offset, io.SeekStart)
	return err
}

func (r *criReader) close() {
	if r.f != nil {
		_ = r.f.Close()
		r.f = nil
	}
}

// is says whether a name leads to the file that is open.
func (r *criReader) is(root *os.Root, name string) bool {
	if r.f == nil {
		return false
	}
	here, err1 := r.f.Stat()
	there, err2 := root.Stat(name)
	// What is gone now will have a successor with the next look.
	return err2 != nil || err1 == nil && os.SameFile(here, there)
}

// read hands over all whole lines up to the file's end as it is now.
func (r *criReader) read(send func(*api.ContainerLogsResponse) error) error {
	if r.f == nil {
		return nil
	}
	var buf [32 << 10]byte
	for {
		n, err := r.f.Read(buf[:])
		for b := buf[:n]; len(b) > 0; {
			line, after, whole := bytes.Cut(b, []byte("\n"))
			b = after
			if !r.skip {
				r.rest = append(r.rest, line...)
			}
			if len(r.rest) > logLineMax {
				r.rest, r.skip = r.rest[:0], true
			}
			if !whole {
				break
			}
			if !r.skip {
				if m, ok := r.line(r.rest); ok {
					if err := send(m); err != nil {
						return err
					}
				}
			}
			r.rest, r.skip = r.rest[:0], false
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// line reads one line of the file. What does not look like one is left out.
func (r *criReader) line(b []byte) (*api.ContainerLogsResponse, bool) {
	when, b, ok1 := bytes.Cut(b, []byte(" "))
	stream, b, ok2 := bytes.Cut(b, []byte(" "))
	tags, text, ok3 := bytes.Cut(b, []byte(" "))
	at, err := time.Parse(time.RFC3339Nano, string(when))
	if !ok1 || !ok2 || !ok3 || err != nil || string(stream) != "stdout" && string(stream) != "stderr" {
		return nil, false
	}
	name := string(stream)
	if parts := r.parts[name]; len(parts) < logLineMax {
		r.parts[name] = append(parts, text...)
	}
	tag, _, _ := bytes.Cut(tags, []byte(":"))
	if string(tag) == "P" {
		return nil, false
	}
	whole := r.parts[name]
	m := &api.ContainerLogsResponse{At: timestamppb.New(at), Stream: name, Line: clean(string(whole[:min(len(whole), logLineMax)]))}
	r.parts[name] = whole[:0]
	return m, true
}
