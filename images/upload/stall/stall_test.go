package stall_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/stall"
)

// clock ticks when it is told to; when tick returns, the looks before the last one are
// over, or the context is that nobody looks for any more.
type clock struct {
	ticks chan time.Time
	ctx   context.Context //nolint:containedctx // It is what the clock ends.
}

func (c clock) tick(n int) {
	for range n {
		select {
		case c.ticks <- time.Time{}:
		case <-c.ctx.Done():
		}
	}
}

func start(t *testing.T, w *stall.Watch) (context.Context, clock) {
	t.Helper()
	ticks := make(chan time.Time)
	ctx, stop := w.Start(t.Context(), ticks)
	t.Cleanup(stop)
	return ctx, clock{ticks, ctx}
}

// ends wants the next tick, and no tick before it, to end a context.
func ends(t *testing.T, ctx context.Context, c clock) {
	t.Helper()
	if ctx.Err() != nil {
		t.Fatalf("it ended too soon: %v", context.Cause(ctx))
	}
	c.tick(1)
	select {
	case <-ctx.Done():
	case c.ticks <- time.Time{}:
		t.Fatal("it did not end")
	}
}

func TestNoByteForTheLimitEndsTheUpload(t *testing.T) {
	t.Parallel()
	w := stall.New("--stall", 2*time.Minute)
	if got := w.Every() * stall.Looks; got != 2*time.Minute {
		t.Errorf("the looks take %s, want 2m", got)
	}
	ctx, c := start(t, w)
	c.tick(stall.Looks - 1)
	ends(t, ctx, c)
	err := context.Cause(ctx)
	if !errors.Is(err, upload.ErrTimeout) || !strings.Contains(err.Error(), "--stall 2m0s is over, and no byte was sent or came") {
		t.Errorf("the cause is %v", err)
	}
}

// moved waits until a watch has counted so many bytes: a count follows its call.
func moved(t *testing.T, w *stall.Watch, want int64) {
	t.Helper()
	for end := time.Now().Add(time.Minute); w.Bytes() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes were counted, want %d", w.Bytes(), want)
		}
	}
}

// A byte, either way, begins the time anew.
func TestAByteBeginsTheTimeAnew(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]func(ours, theirs net.Conn){
		"sent": func(ours, theirs net.Conn) { _, _ = ours.Write([]byte{1}) },
		"came": func(ours, theirs net.Conn) { _, _ = io.ReadFull(ours, make([]byte, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { beginsAnew(t, move) })
		})
	}
}

func beginsAnew(t *testing.T, move func(ours, theirs net.Conn)) {
	t.Helper()
	w := stall.New("--stall", time.Minute)
	ctx, c := start(t, w)
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	conn, err := w.Dialer(func(context.Context, string, string) (net.Conn, error) { return ours, nil })(t.Context(), "tcp", "platform:1")
	if err != nil {
		t.Fatal(err)
	}
	c.tick(stall.Looks - 1)
	// The last of them is over, too, and does not see the byte.
	synctest.Wait()
	go func() { _, _ = theirs.Read(make([]byte, 1)) }()
	go func() { _, _ = theirs.Write([]byte{1}) }()
	move(conn, theirs)
	moved(t, w, 1)
	// The first of these sees the byte.
	c.tick(stall.Looks)
	ends(t, ctx, c)
}

// What a slow line takes of a large body counts before all of it has gone.
func TestALargeBodyIsCountedOnTheWay(t *testing.T) {
	t.Parallel()
	w := stall.New("--stall", time.Minute)
	ours, theirs := net.Pipe()
	body := make([]byte, 4<<20)
	done := make(chan error, 1)
	go func() {
		n, err := w.Conn(ours).Write(body)
		if err == nil && n != len(body) {
			err = io.ErrShortWrite
		}
		done <- err
	}()
	if _, err := io.ReadFull(theirs, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	moved(t, w, 1<<20-256<<10)
	if len(done) > 0 || w.Bytes() == int64(len(body)) {
		t.Fatalf("a quarter was taken, and %d bytes are counted", w.Bytes())
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(theirs, 3<<20)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || w.Bytes() != int64(len(body)) {
		t.Errorf("%v, and %d bytes are counted", err, w.Bytes())
	}
	theirs.Close()
	if n, err := w.Conn(ours).Write(body); err == nil || n != 0 {
		t.Errorf("a closed connection took %d bytes", n)
	}
}

// Whoever wants no limit has a watch that is nil.
func TestNoLimit(t *testing.T) {
	t.Parallel()
	w := stall.New("--stall", 0)
	ctx, stop := w.Start(t.Context(), nil)
	defer stop()
	ours, _ := net.Pipe()
	defer ours.Close()
	if w != nil || ctx != t.Context() || w.Conn(ours) != ours || w.Every() != 0 || w.Bytes() != 0 {
		t.Error("a limit of 0 is one")
	}
}

// An upload that is over, or called off, leaves no goroutine and keeps its own cause.
func TestAnUploadThatIsOver(t *testing.T) {
	t.Parallel()
	parent, cancel := context.WithCancel(t.Context())
	ctx, stop := stall.New("--stall", time.Minute).Start(parent, make(chan time.Time))
	cancel()
	stop()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) || errors.Is(cause, upload.ErrTimeout) {
		t.Errorf("the cause is %v", cause)
	}
}
