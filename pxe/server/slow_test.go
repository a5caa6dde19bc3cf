package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// Whoever says nothing, says it slowly, says too much or has nothing more to say is cut
// off after a while, and does not keep a place for ever.
func TestSlowAndLongClientsAreCutOff(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "answer") })
	go func() {
		ended <- httpTask("http", l, h, slog.New(slog.DiscardHandler), manner{header: 100 * time.Millisecond, idle: 100 * time.Millisecond, stop: time.Minute}).Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	const request, cut = "GET / HTTP/1.1\r\nHost: x\r\n", "HTTP/1.1 400 Bad Request"
	for _, c := range []struct {
		name string
		// at once is written first, then slowly piece after piece of the same.
		atOnce, slowly string
		want           string
	}{
		{"nothing", "", "", ""},
		{"a header byte by byte", request, "x", cut},
		{"a header line by line", request, "X: y\r\n", cut},
		{"a header without end", request + "X: " + strings.Repeat("x", 64<<10), "x", "HTTP/1.1 431 Request Header Fields Too Large"},
		{"an address without end", "GET /" + strings.Repeat("x", 64<<10), "x", "HTTP/1.1 431 Request Header Fields Too Large"},
		{"more headers than anybody has", request + strings.Repeat("X: y\r\n", 16<<10), "X: y\r\n", "HTTP/1.1 431 Request Header Fields Too Large"},
		{"one request and then nothing", request + "\r\n", "", "HTTP/1.1 200 OK"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp4", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, err := io.WriteString(conn, c.atOnce)
				for err == nil && c.slowly != "" {
					time.Sleep(10 * time.Millisecond)
					_, err = io.WriteString(conn, c.slowly)
				}
			}()
			got, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("a minute later it is still connected")
			}
			// The answer may be lost when the server closes before it has read everything,
			// and on a busy machine we may be too slow to ask, or to ask for too much: then
			// the line that is cut off is no good one.
			if first, _, _ := strings.Cut(string(got), "\r\n"); first != "" && first != c.want && first != cut {
				t.Errorf("got %q, want %q", first, c.want)
			}
		})
	}
}
