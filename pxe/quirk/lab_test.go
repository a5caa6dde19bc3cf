package quirk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/grub"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/quirk"
	"github.com/imagectl/imagectl/pxe/tftp"
)

var (
	kernelBlob = boot.Blob{Name: "vmlinuz", SHA256: strings.Repeat("1", 64), Size: 10}
	initrdBlob = boot.Blob{Name: "initrd.cpio.gz", SHA256: strings.Repeat("2", 64), Size: 10}
	loaderBlob = boot.Blob{Name: "snponly.efi", SHA256: strings.Repeat("3", 64), Size: 10}
)

type httpSource func(boot.Machine) boot.Answer

func (d httpSource) Decide(m boot.Machine) boot.Answer { return d(m) }

func (d httpSource) Ignition(boot.Machine) ([]byte, error) { return []byte("{}"), nil }

func (d httpSource) Blob(sha256 string) (boot.Blob, bool) {
	for _, b := range []boot.Blob{kernelBlob, initrdBlob, loaderBlob} {
		if b.SHA256 == sha256 {
			return b, true
		}
	}
	return boot.Blob{}, false
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// playHTTP sends a request, every line after "| ", and returns the answer so.
func playHTTP(decide func(boot.Machine) boot.Answer, lines []string) ([][]string, error) {
	h := httpboot.New(httpboot.Config{Source: httpSource(decide), Server: server, Programs: map[boot.Firmware]httpboot.Program{boot.UEFIx64: {Blob: loaderBlob}}, Open: func(sha256 string) (io.ReadSeekCloser, error) {
		if _, ok := httpSource(decide).Blob(sha256); !ok {
			return nil, fs.ErrNotExist
		}
		return memory{bytes.NewReader([]byte("0123456789"))}, nil
	}})
	method, rest, _ := strings.Cut(strings.TrimPrefix(lines[0], "| "), " ")
	req := httptest.NewRequest(method, "http://"+server.String()+rest, nil)
	for _, l := range lines[1:] {
		k, v, _ := strings.Cut(strings.TrimPrefix(l, "| "), ": ")
		req.Header.Set(k, v)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	resp := rec.Result()
	resp.Request = req // HEAD has a length and no body
	var b bytes.Buffer
	if err := resp.Write(&b); err != nil {
		return nil, err
	}
	answer := []string{"< http"}
	for _, l := range strings.Split(strings.TrimSuffix(strings.ReplaceAll(b.String(), "\r\n", "\n"), "\n"), "\n") {
		answer = append(answer, strings.TrimRight("| "+l, " "))
	}
	return [][]string{answer}, nil
}

// patience is far more than a loaded machine needs.
const patience = time.Minute

// tftpLab is a real server on the loopback with one socket for each client. A
// client is named by what comes after "> tftp": a word, or the address of a card
// that the server then knows. A client "second@first" has the address of first.
type tftpLab struct {
	at      net.Addr
	refused chan string

	mu      sync.Mutex
	cards   map[netip.Addr]net.HardwareAddr
	clients map[string]*tftpClient
}

type tftpClient struct {
	*net.UDPConn
	// session is where the server's transfer sends from; last is its last packet.
	session netip.AddrPort
	last    []byte
}

func newTFTPLab(tb testing.TB, t transcript, quirks quirk.Set) *tftpLab {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	l := &tftpLab{at: conn.LocalAddr(), refused: make(chan string, 100), cards: map[netip.Addr]net.HardwareAddr{}, clients: map[string]*tftpClient{}}
	decide := t.decide(quirks)
	cfg := tftp.Config{
		Files: map[string][]byte{
			"undionly.kpxe": bytes.Repeat([]byte("b"), 2000), "snponly.efi": bytes.Repeat([]byte("u"), 2000),
			"autoexec.ipxe": []byte(httpboot.Autoexec(dhcp.ScriptURL(server))),
		},
		Sessions: t.sessions,
		Refused:  func(_ netip.Addr, code, reason string) { l.refused <- code + ": " + reason },
		Waits:    func(_ netip.Addr, before int) { l.refused <- fmt.Sprintf("not yet: it waits behind %d others", before) },
		Effect: func(client netip.Addr) quirk.Effect {
			l.mu.Lock()
			defer l.mu.Unlock()
			mac := l.cards[client]
			e, _ := quirks.Apply(quirk.TFTP, quirk.Client{MAC: mac}, decide(boot.Machine{MAC: mac}).Quirks)
			return e
		},
	}
	if t.grub {
		cfg.Files[grub.ShimName], cfg.Files[grub.ProgramName] = bytes.Repeat([]byte("s"), 2000), bytes.Repeat([]byte("g"), 2000)
		cfg.Files[grub.ConfigName] = []byte(grub.Config(server.Addr()))
		cfg.Find = func(_ netip.Addr, name string) (io.ReadSeekCloser, bool) { return nil, grub.Spare(name) }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tftp.Serve(ctx, conn, cfg) }()
	tb.Cleanup(func() {
		// The server waits for its transfers, and they for clients that are done.
		for _, c := range l.clients {
			if c.session.IsValid() {
				_, _ = c.WriteTo([]byte("\x00\x05\x00\x00done\x00"), net.UDPAddrFromAddrPort(c.session))
			}
			c.Close()
		}
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("the server ended with %v", err)
		}
	})
	return l
}

// client opens a socket for a new name, on an address of its own unless it says whose.
func (l *tftpLab) client(name string) (*tftpClient, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.clients[name]; ok {
		return c, nil
	}
	own := netip.AddrFrom4([4]byte{127, 0, 0, byte(10 + len(l.clients))})
	if _, first, ok := strings.Cut(name, "@"); ok {
		c, ok := l.clients[first]
		if !ok {
			return nil, fmt.Errorf("the client %s has the address of %s, which has not said anything", name, first)
		}
		own = c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	}
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0)))
	if err != nil {
		return nil, err
	}
	c := &tftpClient{UDPConn: conn}
	l.clients[name], l.cards[own] = c, cardOf(name)
	return c, nil
}

// play sends the packets and waits for as many answers as the file has: what is
// not written there cannot be waited for. For -update write "<" and nothing.
func (l *tftpLab) play(name string, packets []string, want [][]string) ([][]string, error) {
	c, err := l.client(name)
	if err != nil {
		return nil, err
	}
	for _, p := range packets {
		b, err := encodeTFTP(p)
		if err != nil {
			return nil, err
		}
		to := l.at
		if !strings.HasPrefix(p, "rrq ") {
			to = net.UDPAddrFromAddrPort(c.session)
		}
		if _, err := c.WriteTo(b, to); err != nil {
			return nil, err
		}
	}
	var out [][]string
	for _, w := range want {
		if strings.HasPrefix(w[0], "< refused") {
			select {
			case r := <-l.refused:
				out = append(out, []string{"< refused " + r})
			case <-time.After(patience):
				return nil, errors.New("nothing was refused")
			}
			continue
		}
		p, err := c.next()
		if err != nil {
			return nil, err
		}
		out = append(out, []string{"< tftp", p})
	}
	return out, nil
}

// next is the next packet of the client's transfer. The server repeats itself when
// this test is slow.
func (c *tftpClient) next() (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return "", err
		}
		if !c.session.IsValid() {
			c.session = from
		}
		if from != c.session {
			return "", fmt.Errorf("a second transfer began, from %s besides %s", from, c.session)
		}
		if bytes.Equal(buf[:n], c.last) {
			continue
		}
		c.last = bytes.Clone(buf[:n])
		packet := sorted(c.last)
		text, err := decodeTFTP(packet)
		if err != nil {
			return "", err
		}
		if again, err := encodeTFTP(text); err != nil || !bytes.Equal(again, packet) {
			return "", fmt.Errorf("the answer does not survive its own text %q: %x", text, c.last)
		}
		return text, nil
	}
}
