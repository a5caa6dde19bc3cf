package httpboot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

func TestByWhenAPieceHasToBeGone(t *testing.T) {
	t.Parallel()
	began := time.Unix(0, 0)
	for _, c := range []struct {
		name string
		sent int64
		now  time.Duration
		want time.Duration
	}{
		{"the first piece", 0, 0, 46 * time.Second},
		{"who is behind has until its mean rate is too low", 10 << 20, 170 * time.Second, 206 * time.Second},
		{"who is too slow has no time left", 1 << 20, 70 * time.Second, 62 * time.Second},
		{"who was quick may not stand still for the longer", 100 << 20, 10 * time.Second, 56 * time.Second},
		{"a file as big as a disk", 1 << 44, time.Hour, time.Hour + 46*time.Second},
	} {
		p := pace{terms: usual(), began: began, sent: c.sent}
		if got := p.until(began.Add(c.now), 1<<20).Sub(began); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// zeros are the content of a big file.
type zeros struct{ *io.SectionReader }

func (zeros) Close() error { return nil }

type nothing struct{}

func (nothing) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// onlyFile has one file.
type onlyFile struct {
	fakeSource
	file boot.Blob
}

func (b onlyFile) Blob(sha string) (boot.Blob, bool) { return b.file, sha == b.file.SHA256 }

// piped hands out one end of a pipe for each connection, so that time may be a test's own.
type piped struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *piped) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *piped) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *piped) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// timed is a boot.Recorder.
type timed struct {
	mu     sync.Mutex
	events []boot.Event
}

func (l *timed) Record(e boot.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// The time is the bubble's: a minute of it takes none.
func TestASlowReaderGetsItsFileAndOneThatStandsStillDoesNot(t *testing.T) {
	const size = 150 << 20
	for _, c := range []struct {
		name string
		// rate is what is read in a second, until so much was read; 0 for all.
		rate, until int64
		// rest is what a range asks for; all of the file unless it is set.
		rest int64
		// cut is by when after the last byte that it read.
		cut  time.Duration
		code string
	}{
		{name: "a BMC of 100 KiB a second", rate: 100 << 10},
		{name: "one that is quick", rate: 10 << 20},
		{name: "one that reads nothing", rate: 1, until: 1, cut: 47 * time.Second, code: CodeStalled},
		{name: "one that was quick and stands still", rate: 10 << 20, until: 50 << 20, cut: 47 * time.Second, code: CodeStalled},
		{name: "one that goes on at half the rate", rate: 30 << 10, cut: 2 * time.Second, code: CodeStalled},
		{name: "one that stands still before a small range", rate: 1, until: 1, rest: 64 << 10, cut: 32 * time.Second, code: CodeStalled},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &timed{}
				h := New(Config{Source: onlyFile{answers(), boot.Blob{Name: kernel.Name, SHA256: kernel.SHA256, Size: size}}, Server: at, Recorder: log,
					Open: func(string) (io.ReadSeekCloser, error) { return zeros{io.NewSectionReader(nothing{}, 0, size)}, nil }})
				l := &piped{conns: make(chan net.Conn), done: make(chan struct{})}
				srv := &http.Server{Handler: h, WriteTimeout: time.Minute}
				served := make(chan error, 1)
				go func() { served <- srv.Serve(l) }()
				ours, theirs := net.Pipe()
				l.conns <- theirs
				ranged := ""
				if c.rest != 0 {
					ranged = fmt.Sprintf("Range: bytes=%d-\r\n", size-c.rest)
				}
				if _, err := fmt.Fprintf(ours, "GET /files/%s/%s?stage=kernel&mac=52:54:00:00:00:01 HTTP/1.1\r\nHost: x\r\n%s\r\n", kernel.SHA256, kernel.Name, ranged); err != nil {
					t.Fatal(err)
				}
				r, err := http.ReadResponse(bufio.NewReader(ours), nil)
				if err != nil {
					t.Fatal(err)
				}
				var got int64
				last := time.Now()
				for err == nil && (c.until == 0 || got < c.until) {
					var n int64
					n, err = io.CopyN(io.Discard, r.Body, c.rate)
					if got += n; n > 0 {
						last = time.Now()
					}
					time.Sleep(time.Second)
				}
				time.Sleep(2 * time.Minute) // who stands still does so
				synctest.Wait()
				log.mu.Lock()
				events := log.events
				log.mu.Unlock()
				var cut boot.Event
				for _, e := range events {
					if e.Refusal.Code != "" {
						cut = e
					}
				}
				switch after := cut.At.Sub(last); {
				case c.code == "" && (got != size || cut.Refusal.Code != ""):
					t.Errorf("it has %d of %d bytes, and %v", got, size, cut.Refusal)
				case c.code != "" && (cut.Refusal.Code != c.code || cut.Stage != boot.StageKernel || after > c.cut):
					t.Errorf("%s after its last byte: %s %v", after, cut.Stage, cut.Refusal)
				case c.code != "" && !strings.HasPrefix(cut.Detail, "cut off: it took "):
					t.Errorf("it is told as %q", cut.Detail)
				}
				ours.Close()
				srv.Close()
				<-served
			})
		})
	}
}

// Four hosts that ask for as many files as they may and read none of them take every
// place, but not for long; curl, which comes back when it is told to, gets its file.
func TestWhoStandsStillDoesNotKeepAPlace(t *testing.T) {
	t.Parallel()
	const size = 64 << 20 // more than the kernel takes for a client that does not read
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.CopyN(sum, zeros{io.NewSectionReader(nothing{}, 0, size)}, size); err != nil {
		t.Fatal(err)
	}
	blob := boot.Blob{Name: "kernel", SHA256: hex.EncodeToString(sum.Sum(nil)), Size: size}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// Nobody is cut off before the last has its place.
	opened, all := make(chan struct{}, 1000), make(chan struct{})
	h := on(terms{least: 1 << 20, still: 300 * time.Millisecond, piece: 64 << 10}, Config{Source: onlyFile{answers(), blob}, Server: at,
		Open: func(string) (io.ReadSeekCloser, error) {
			opened <- struct{}{}
			select {
			case <-all:
			case <-ctx.Done():
			}
			return os.Open(path)
		}})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, WriteTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	for i := range defaultTransfers {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%4))}}
		c, err := d.DialContext(ctx, "tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "GET /files/%s/%s HTTP/1.1\r\nHost: x\r\n\r\n", blob.SHA256, blob.Name); err != nil {
			t.Fatal(err)
		}
		select {
		case <-opened:
		case <-ctx.Done():
			t.Fatalf("reader %d has no place", i)
		}
	}
	close(all)
	// curl stands still when this host does: then it is cut off, too, and begins again.
	out := filepath.Join(t.TempDir(), "out")
	argv := []string{"--silent", "--show-error", "--fail", "--interface", "127.0.0.9", "--retry", "100", "--retry-all-errors", "--retry-max-time", "60", "--max-time", "60", "--output", out,
		fmt.Sprintf("http://%s/files/%s/%s", l.Addr(), blob.SHA256, blob.Name)}
	if msg, err := exec.CommandContext(ctx, "curl", argv...).CombinedOutput(); err != nil {
		t.Fatalf("curl: %v: %s (apt-get install curl)", err, msg)
	}
	if info, err := os.Stat(out); err != nil || info.Size() != size {
		t.Errorf("curl has %v, %v", info, err)
	}
}

// Who was cut off does not come back for as many places as before.
func TestWhoWasCutOffHasOnePlaceForAWhile(t *testing.T) {
	t.Parallel()
	p, now := newPlaces(8, nil), time.Unix(0, 0)
	have := func(client string) (n int) {
		var leaves []func(bool, time.Time)
		for {
			ok, leave := p.enter(client, now)
			if !ok {
				break
			}
			leaves = append(leaves, leave)
		}
		for _, leave := range leaves {
			leave(false, now)
		}
		return len(leaves)
	}
	if n := have("10.0.0.7:1"); n != 2 {
		t.Fatalf("it has %d places", n)
	}
	_, leave := p.enter("10.0.0.7:1", now)
	leave(true, now)
	if cut, other := have("10.0.0.7:2"), have("10.0.0.8:1"); cut != 1 || other != 2 {
		t.Errorf("once it was cut off it has %d places, and another %d", cut, other)
	}
	if now = now.Add(distrust); have("10.0.0.7:3") != 2 {
		t.Errorf("%s later it has %d places", distrust, have("10.0.0.7:3"))
	}
	for i := range 3 * maxDistrusted {
		_, leave := p.enter(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 1).String(), now)
		leave(true, now)
	}
	if len(p.cut) != maxDistrusted {
		t.Errorf("%d clients are remembered", len(p.cut))
	}
}

// A host has as many IPv6 addresses as it likes.
func TestOneIPv6NetworkIsOneClient(t *testing.T) {
	t.Parallel()
	leased := netip.MustParseAddr("fd00:10::1000")
	p := newPlaces(8, func(a netip.Addr) bool { return a == leased })
	n := 0
	for i := range 8 {
		if ok, _ := p.enter(fmt.Sprintf("[fd00:10::%x]:1", i+1), time.Unix(0, 0)); ok {
			n++
		}
	}
	if n != 2 {
		t.Errorf("addresses of one network have %d of 8 places, want 2", n)
	}
	for _, other := range []string{"[fd00:10::1000]:1", "[fd00:10::1000]:2", "[fd00:11::1]:1", "[fe80::1%eth0]:1", "[fe80::2%eth1]:1"} {
		if ok, _ := p.enter(other, time.Unix(0, 0)); !ok {
			t.Errorf("%s has no place", other)
		}
	}
}
