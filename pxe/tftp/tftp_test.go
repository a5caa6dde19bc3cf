package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// program is longer than 65,535 blocks of 512 bytes would be at blksize 8, and
// not a multiple of any block size.
func program(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func serve(t *testing.T, cfg Config) *net.UDPAddr {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, conn, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return conn.LocalAddr().(*net.UDPAddr)
}

// Foreign clients judge: atftp speaks the options, tftp-hpa is what many people
// have, and busybox what small systems have, with and without options.
func TestForeignClientsFetchTheFile(t *testing.T) {
	want := program(300_001)
	at := serve(t, Config{Files: map[string][]byte{"snponly.efi": want, "empty": {}, "block": want[:1024]}})
	port := fmt.Sprint(at.Port)
	for _, c := range []struct {
		name string
		file []byte
		argv func(out string) []string
	}{
		{"atftp", want, func(out string) []string {
			return []string{"atftp", "--get", "--local-file", out, "--remote-file", "snponly.efi", "127.0.0.1", port}
		}},
		{"atftp with blksize and tsize", want, func(out string) []string {
			return []string{"atftp", "--option", "blksize 1468", "--option", "tsize 0", "--get", "--local-file", out, "--remote-file", "snponly.efi", "127.0.0.1", port}
		}},
		{"atftp, a whole number of blocks", want[:1024], func(out string) []string {
			return []string{"atftp", "--get", "--local-file", out, "--remote-file", "block", "127.0.0.1", port}
		}},
		{"tftp-hpa", want, func(out string) []string {
			return []string{"tftp", "-m", "octet", "127.0.0.1", port, "-c", "get", "snponly.efi", out}
		}},
		{"tftp-hpa as people call it, in netascii", want, func(out string) []string {
			return []string{"tftp", "127.0.0.1", port, "-c", "get", "snponly.efi", out}
		}},
		{"busybox", want, func(out string) []string {
			return []string{"busybox", "tftp", "-g", "-l", out, "-r", "snponly.efi", "127.0.0.1", port}
		}},
		{"busybox with blksize", want, func(out string) []string {
			return []string{"busybox", "tftp", "-b", "1468", "-g", "-l", out, "-r", "snponly.efi", "127.0.0.1", port}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			argv := c.argv(out)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			if msg, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s(apt-get install atftp tftp-hpa busybox-static)", argv, err, msg)
			}
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, c.file) {
				t.Errorf("got %d bytes, want %d, or they differ", len(got), len(c.file))
			}
		})
	}
}

// ask sends one packet from a new port and returns the first answer.
func ask(t *testing.T, to *net.UDPAddr, packet string) (string, *net.UDPConn, *net.UDPAddr) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.WriteToUDP([]byte(packet), to); err != nil {
		t.Fatal(err)
	}
	got, from := answer(t, conn, time.Minute)
	return got, conn, from
}

func answer(t *testing.T, conn *net.UDPConn, limit time.Duration) (string, *net.UDPAddr) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	n, from, err := conn.ReadFromUDP(buf)
	if err != nil {
		return "silence", nil
	}
	return string(buf[:n]), from
}

func read(name string, fields ...string) string {
	return "\x00\x01" + strings.Join(append([]string{name}, fields...), "\x00") + "\x00"
}

func TestRequestsOfFirmware(t *testing.T) {
	content := program(5000)
	at := serve(t, Config{Files: map[string][]byte{"snponly.efi": content}})
	first := "\x00\x03\x00\x01" + string(content[:512])
	notFound := "\x00\x05\x00\x01file not found\x00"
	for _, c := range []struct {
		name, request, want string
	}{
		{"plain", read("snponly.efi", "octet"), first},
		{"quirk 11: option 67 read past its end", read("snponly.efi\xff", "octet"), first},
		{"quirk 36: backslashes and capitals", read(`\Boot\SNPONLY.EFI`, "octet"), first},
		{"quirk 49: doubled slashes", read("//snponly.efi", "octet"), first},
		{"mode in capitals", read("snponly.efi", "OCTET"), first},
		{"quirk 31: blksize is clamped to MTU-32", read("snponly.efi", "octet", "blksize", "1472"), "\x00\x06blksize\x001468\x00"},
		{"quirk 31: what fits is left alone", read("snponly.efi", "octet", "blksize", "1456"), "\x00\x06blksize\x001456\x00"},
		{"quirk 32: option names in capitals", read("snponly.efi", "octet", "BLKSIZE", "1456"), "\x00\x06blksize\x001456\x00"},
		{"quirk 29: tsize when asked for", read("snponly.efi", "octet", "tsize", "0"), "\x00\x06tsize\x005000\x00"},
		{"quirk 33: an unknown option is ignored", read("snponly.efi", "octet", "windowsize", "4"), first},
		{"a file we do not have", read("grubx64.efi", "octet"), notFound},
		{"a way out of the directory", read("../../../etc/passwd", "octet"), notFound},
		{"a name of nothing", read("\xff", "octet"), notFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, conn, from := ask(t, at, c.request)
			if got != c.want {
				t.Fatalf("got %.80q, want %.80q", got, c.want)
			}
			if _, err := conn.WriteToUDP([]byte("\x00\x05\x00\x08done\x00"), from); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// notClosed counts the files that are open.
type notClosed struct {
	*bytes.Reader
	open *atomic.Int32
}

func (f notClosed) Close() error { f.open.Add(-1); return nil }

func TestWhatIsMadeForOneClientIsFound(t *testing.T) {
	content := program(5000)
	var open atomic.Int32
	refused := make(chan string, 10)
	at := serve(t, Config{Files: map[string][]byte{"grub.cfg": []byte("first"), "grubx64.efi": content},
		Find: func(_ netip.Addr, name string) (io.ReadSeekCloser, bool) {
			if name != "imagectl/52:54:00:00:00:01/kernel" {
				return nil, strings.HasSuffix(name, ".lst")
			}
			open.Add(1)
			return notClosed{bytes.NewReader(content), &open}, true
		},
		Refused: func(_ netip.Addr, _, reason string) { refused <- reason }})
	data := "\x00\x03\x00\x01"
	notFound := "\x00\x05\x00\x01file not found\x00"
	for _, c := range []struct{ name, request, want string }{
		{"by its whole name", read("/imagectl//52:54:00:00:00:01/Kernel", "octet"), data + string(content[:512])},
		{"with its size", read(`\imagectl\52:54:00:00:00:01\kernel`, "octet", "tsize", "0"), "\x00\x06tsize\x005000\x00"},
		{"what is for all counts first", read("/debian-installer/amd64/grub/grub.cfg", "octet"), data + "first"},
		{"quirk 49: grubx64.efi anywhere", read("/EFI/debian//grubx64.efi", "octet"), data + string(content[:512])},
		{"in another directory", read("/kernel", "octet"), notFound},
		{"what nobody misses", read("/grub/x86_64-efi/command.lst", "octet"), notFound},
	} {
		got, conn, from := ask(t, at, c.request)
		if got != c.want {
			t.Errorf("%s: got %.80q, want %.80q", c.name, got, c.want)
		}
		conn.WriteToUDP([]byte("\x00\x05\x00\x08done\x00"), from)
	}
	if got, want := <-refused, `there is no file "/kernel" here; its firmware was given another name`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if len(refused) > 0 {
		t.Errorf("and %q", <-refused)
	}
	for end := time.Now().Add(time.Minute); open.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files are open", open.Load())
		}
	}
}

func TestRepeatedRequestDoesNotStartASecondTransfer(t *testing.T) {
	content := program(5000)
	started := make(chan netip.Addr, 10)
	at := serve(t, Config{Files: map[string][]byte{"a": content}, Started: func(a netip.Addr, _ string) { started <- a }})
	_, conn, from := ask(t, at, read("a", "octet"))
	if _, err := conn.WriteToUDP([]byte(read("a", "octet")), at); err != nil {
		t.Fatal(err)
	}
	// The library repeats the first block after its time-out; it must come from the
	// same port.
	if _, again := answer(t, conn, time.Minute); again == nil || again.Port != from.Port {
		t.Errorf("quirk 34: the repeated request is answered from %v, the first from %v", again, from)
	}
	conn.WriteToUDP([]byte("\x00\x05\x00\x00bye\x00"), from)
	if len(started) != 1 {
		t.Errorf("%d transfers started", len(started))
	}
}

func TestSessionsAreBoundedAndTheOthersWaitForTheirTurn(t *testing.T) {
	waits := make(chan int, 10)
	at := serve(t, Config{Files: map[string][]byte{"a": program(5000)}, Sessions: 8, Waits: func(_ netip.Addr, before int) { waits <- before }})
	var conns []*net.UDPConn
	var peers []*net.UDPAddr
	for range 2 { // a quarter of the places is what one address may have
		got, conn, from := ask(t, at, read("a", "octet"))
		if got == "silence" {
			t.Fatal("no answer below the limit")
		}
		conns, peers = append(conns, conn), append(peers, from)
	}
	third, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	third.WriteToUDP([]byte(read("a", "octet")), at)
	select {
	case before := <-waits:
		if before != 0 {
			t.Errorf("it waits behind %d", before)
		}
	case <-time.After(time.Minute):
		t.Fatal("the third request of the address does not wait")
	}
	for i := range conns {
		conns[i].WriteToUDP([]byte("\x00\x05\x00\x00bye\x00"), peers[i])
	}
	got, from := answer(t, third, time.Minute)
	if from == nil || len(got) != 516 {
		t.Fatalf("got %.20q when the sessions had ended, want the first block without asking again", got)
	}
	third.WriteToUDP([]byte("\x00\x05\x00\x00bye\x00"), from)
}

// fetches asks for the file a and repeats it, as firmware does: the request may
// be the one that a full socket buffer drops.
func fetches(t *testing.T, at *net.UDPAddr, times int) bool {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range times {
		conn.WriteToUDP([]byte(read("a", "octet")), at)
		if got, from := answer(t, conn, time.Second); from != nil {
			conn.WriteToUDP([]byte("\x00\x05\x00\x00bye\x00"), from)
			return len(got) == 516
		}
	}
	return false
}

func TestGarbageNeitherStopsNorFattensTheServer(t *testing.T) {
	at := serve(t, Config{Files: map[string][]byte{"a": program(700)}})
	conn, err := net.DialUDP("udp4", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := rand.New(rand.NewPCG(3, 4))
	goroutines := runtime.NumGoroutine()
	for i := range 20000 {
		b := program(r.IntN(700))
		if len(b) > 2 && i%2 == 0 {
			binary.BigEndian.PutUint16(b, uint16(r.IntN(8)))
		}
		// The kernel may refuse with what came back for an earlier packet.
		_, _ = conn.Write(b)
	}
	if !fetches(t, at, 300) {
		t.Error("no answer after the flood")
	}
	if n := runtime.NumGoroutine(); n > goroutines+defaultSessions {
		t.Errorf("%d goroutines, before the flood %d", n, goroutines)
	}
}

func FuzzNormalise(f *testing.F) {
	for _, s := range []string{read("a", "octet"), read("a", "OCTET", "BlkSize", "512"), "\x00\x01", "\x00\x01\x00\x00\x00\x00", read("\xff", "netascii", "")} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := append([]byte(nil), b...)
		if !normalise(b) {
			return
		}
		again := append([]byte(nil), b...)
		if !normalise(again) || !bytes.Equal(again, b) {
			t.Errorf("%q is not a fixed point", b)
		}
		for i := range b {
			if b[i] != before[i] && b[i] != before[i]+'a'-'A' {
				t.Errorf("%q became %q", before, b)
			}
		}
	})
}
