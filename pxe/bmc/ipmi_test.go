package bmc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bougou/go-ipmi"
)

// fakeIPMI is an IPMI 2.0 BMC on loopback: sessions by RMCP+, and the few commands
// that a machine is switched with. OpenIPMI's simulator judges the same client under
// the tag root.
type fakeIPMI struct {
	mu sync.Mutex

	// What it is like.
	password     string
	manufacturer uint32
	board        string
	suites       []ipmi.CipherSuiteID
	forgets      bool // a boot device, unless it was told not to
	noTimeout    bool // does not know parameter 3, as OpenBMC
	ignoresEFI   bool // a UEFI boot device without the persistent bit
	busy         int  // answers "node busy" so many times
	forge        func(p []byte) [][]byte

	// What it is doing.
	suite    suite
	rm, rc   []byte
	role     byte
	user     string
	k1, k2   []byte
	sik      []byte
	sequence uint32
	on       bool
	flags    []byte
	keeps    bool
	booted   []string
}

const consoleSession, bmcSession = 0xa0a1a2a3, 0x12345678

func (f *fakeIPMI) start(t *testing.T) Target {
	t.Helper()
	if f.password == "" {
		f.password = "s3cret"
	}
	if f.suites == nil {
		f.suites = []ipmi.CipherSuiteID{ipmi.CipherSuiteID17, ipmi.CipherSuiteID3}
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, p := range f.answer(slices.Clone(buf[:n])) {
				if _, err := c.WriteTo(p, from); err != nil {
					return
				}
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return Target{Kind: IPMI, Address: c.LocalAddr().String(), Username: "imagectl", Password: "s3cret", patience: 100}
}

// starts are what the machine booted from.
func (f *fakeIPMI) starts() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.booted)
}

// answer returns the datagrams that answer one.
func (f *fakeIPMI) answer(p []byte) [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(p) < 16 {
		return nil
	}
	var out []byte
	switch {
	case p[4] == 0: // IPMI 1.5, before a session
		reply := f.command(p[14:])
		out = append([]byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(reply))}, reply...)
	case p[5] == 0x10:
		out = f.open(p[16:])
	case p[5] == 0x12:
		out = f.rakp1(p[16:])
	case p[5] == 0x14:
		out = f.rakp3(p[16:])
	case p[5] == 0xc0:
		out = f.session(p)
	}
	if out == nil {
		return nil
	}
	if f.forge != nil {
		return f.forge(out)
	}
	return [][]byte{out}
}

func outside(kind byte, payload []byte) []byte {
	p := append([]byte{6, 0, 0xff, 7, 6, kind, 0, 0, 0, 0, 0, 0, 0, 0}, byte(len(payload)), 0)
	return append(p, payload...)
}

func (f *fakeIPMI) sum(key []byte, parts ...[]byte) []byte {
	h := hmac.New(f.suite.hash, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func (f *fakeIPMI) open(p []byte) []byte {
	for _, s := range suites() {
		if s.auth == p[12] && slices.Contains(f.suites, s.id) {
			f.suite = s
			reply := append([]byte{p[0], 0, 3, 0}, p[4:8]...)
			reply = binary.LittleEndian.AppendUint32(reply, bmcSession)
			reply = append(reply, 0, 0, 0, 8, s.auth, 0, 0, 0, 1, 0, 0, 8, s.integrity, 0, 0, 0, 2, 0, 0, 8, s.crypt, 0, 0, 0)
			return outside(0x11, reply)
		}
	}
	return outside(0x11, append([]byte{p[0], 0x11, 0, 0}, p[4:8]...))
}

func (f *fakeIPMI) rakp1(p []byte) []byte {
	f.rm, f.role, f.user = p[8:24], p[24], string(p[28:])
	first := sha256.Sum256(f.rm) // the same again for a message that is sent again
	f.rc = first[:16]
	guid := make([]byte, 16)
	console := binary.LittleEndian.AppendUint32(nil, consoleSession)
	who := append([]byte{f.role, byte(len(f.user))}, f.user...)
	code := f.sum([]byte(f.password), console, p[4:8], f.rm, f.rc, guid, who)
	f.sik = f.sum([]byte(f.password), f.rm, f.rc, who)
	reply := append([]byte{p[0], 0, 0, 0}, console...)
	return outside(0x13, slices.Concat(reply, f.rc, guid, code))
}

func (f *fakeIPMI) rakp3(p []byte) []byte {
	ones, twos := make([]byte, 20), make([]byte, 20)
	for i := range ones {
		ones[i], twos[i] = 1, 2
	}
	if k1 := f.sum(f.sik, ones); !slices.Equal(f.k1, k1) {
		f.k1, f.k2, f.sequence = k1, f.sum(f.sik, twos), 0
	}
	code := f.sum(f.sik, f.rm, p[4:8], make([]byte, 16))[:f.suite.code]
	return outside(0x15, slices.Concat([]byte{p[0], 0, 0, 0}, binary.LittleEndian.AppendUint32(nil, consoleSession), code))
}

func (f *fakeIPMI) session(p []byte) []byte {
	code := len(p) - f.suite.code
	if !hmac.Equal(f.sum(f.k1, p[4:code])[:f.suite.code], p[code:]) {
		return nil
	}
	n := int(binary.LittleEndian.Uint16(p[14:]))
	block, _ := aes.NewCipher(f.k2[:16])
	text := make([]byte, n-16)
	cipher.NewCBCDecrypter(block, p[16:32]).CryptBlocks(text, p[32:16+n])
	return f.seal(f.command(text[:len(text)-1-int(text[len(text)-1])]))
}

// seal makes a packet of the session.
func (f *fakeIPMI) seal(message []byte) []byte {
	pad := (16 - (len(message)+1)%16) % 16
	for i := range pad {
		message = append(message, byte(i+1))
	}
	message = append(message, byte(pad))
	block, _ := aes.NewCipher(f.k2[:16])
	iv := make([]byte, 16)
	_, _ = rand.Read(iv)
	body := make([]byte, len(message))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(body, message)
	f.sequence++
	out := binary.LittleEndian.AppendUint32([]byte{6, 0, 0xff, 7, 6, 0xc0}, consoleSession)
	out = binary.LittleEndian.AppendUint32(out, f.sequence)
	out = binary.LittleEndian.AppendUint16(out, uint16(16+len(body)))
	out = slices.Concat(out, iv, body)
	fill := (4 - (len(out)-4+2)%4) % 4
	for range fill {
		out = append(out, 0xff)
	}
	out = append(out, byte(fill), 7)
	return append(out, f.sum(f.k1, out[4:])[:f.suite.code]...)
}

// command answers one IPMI message.
func (f *fakeIPMI) command(p []byte) []byte {
	netfn, cmd, data := p[1]>>2, p[5], p[6:len(p)-1]
	code, reply := f.run(netfn, cmd, data)
	out := []byte{p[3], (netfn + 1) << 2, 0, p[0], p[4], cmd, code}
	out[2] = -(out[0] + out[1])
	out = append(out, reply...)
	var sum byte
	for _, b := range out[3:] {
		sum -= b
	}
	return append(out, sum)
}

func (f *fakeIPMI) run(netfn, cmd byte, data []byte) (code byte, reply []byte) {
	switch uint16(netfn)<<8 | uint16(cmd) {
	case 0x0638: // Get Channel Authentication Capabilities
		return 0, []byte{1, 0x97, 6, 3, 0, 0, 0, 0}
	case 0x063b, 0x063c: // Set Session Privilege Level, Close Session
		if cmd == 0x3c {
			return 0, nil
		}
		return 0, data[:1]
	case 0x0601: // Get Device ID
		return 0, []byte{0x20, 1, 2, 0x10, 2, 0xbf, byte(f.manufacturer), byte(f.manufacturer >> 8), byte(f.manufacturer >> 16), 1, 0, 0, 0, 0, 0}
	case 0x0001: // Get Chassis Status
		if f.busy > 0 {
			f.busy--
			return 0xc0, nil
		}
		var on byte
		if f.on {
			on = 1
		}
		return 0, []byte{on, 0, 0, 0}
	case 0x0002: // Chassis Control
		f.control(data[0])
		return 0, nil
	case 0x0008: // Set System Boot Options
		switch data[0] {
		case 3:
			if f.noTimeout {
				return 0x80, nil
			}
			f.keeps = data[1]&8 != 0
		case 5:
			f.flags = slices.Clone(data[1:6])
		}
		return 0, nil
	case 0x0009: // Get System Boot Options
		flags := f.flags
		if flags == nil {
			flags = make([]byte, 5)
		}
		return 0, append([]byte{1, 5}, flags...)
	case 0x0a10: // Get FRU Inventory Area Info
		return 0, []byte{byte(len(f.fru())), 0, 0}
	case 0x0a11: // Read FRU Data
		fru := f.fru()
		from := int(binary.LittleEndian.Uint16(data[1:]))
		if from > len(fru) {
			return 0xc9, nil
		}
		part := fru[from:min(len(fru), from+int(data[3]))]
		return 0, append([]byte{byte(len(part))}, part...)
	default:
		return 0xc1, nil
	}
}

// fru is the inventory with the board's name in it (IPMI FRU Information Storage
// Definition 1.0).
func (f *fakeIPMI) fru() []byte {
	board := []byte{1, 0, 25, 0, 0, 0, 0xc0 | 10}
	board = append(board, "Supermicro"...)
	board = append(append(board, 0xc0|byte(len(f.board))), f.board...)
	board = append(board, 0xc0, 0xc0, 0xc0, 0xc1)
	for len(board)%8 != 7 {
		board = append(board, 0)
	}
	board[1] = byte((len(board) + 1) / 8)
	head := []byte{1, 0, 0, 1, 0, 0, 0}
	for _, b := range []*[]byte{&head, &board} {
		var sum byte
		for _, x := range *b {
			sum -= x
		}
		*b = append(*b, sum)
	}
	return append(head, board...)
}

func (f *fakeIPMI) control(what byte) {
	switch what {
	case 0, 5:
		f.on = false
	case 1:
		if f.on {
			return
		}
		f.on = true
		from := "own order"
		usable := f.flags != nil && f.flags[0]&0x80 != 0 && f.flags[1]>>2&0xf == 1
		if f.forgets && !f.keeps || f.ignoresEFI && usable && f.flags[0]&0x60 == 0x20 {
			usable = false
		}
		if usable {
			from = "Pxe"
		}
		f.flags = nil
		f.booted = append(f.booted, from)
	}
}

func TestIPMIBootsFromTheNetworkOnce(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]*fakeIPMI{
		"it is off":                   {},
		"it is on":                    {on: true},
		"only suite 3":                {suites: []ipmi.CipherSuiteID{ipmi.CipherSuiteID3}},
		"ipmi-60-seconds":             {forgets: true},
		"OpenBMC has no such timeout": {noTimeout: true},
		"busy":                        {busy: 3},
		"supermicro-x11-efi-pxe":      {manufacturer: 10876, board: "X11DSC+", ignoresEFI: true},
		"another Supermicro":          {manufacturer: 10876, board: "H12SSL-i"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Open(t.Context(), f.start(t), noPause)
			if err != nil {
				t.Fatal(err)
			}
			if err := Boot(t.Context(), c, noPause, PXE, always, func(string) {}); err != nil {
				t.Fatal(err)
			}
			if err := Cycle(t.Context(), c, noPause); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if got := f.starts(); !slices.Equal(got, []string{"Pxe", "own order"}) {
				t.Errorf("booted from %v", got)
			}
		})
	}
}

// The fake really has the quirks: without the data the same fails.
func TestIPMIQuirksAreNeeded(t *testing.T) {
	t.Parallel()
	quirks, err := Quirks()
	if err != nil {
		t.Fatal(err)
	}
	for id, f := range map[string]*fakeIPMI{
		"ipmi-60-seconds":        {forgets: true},
		"supermicro-x11-efi-pxe": {manufacturer: 10876, board: "X11DSC+", ignoresEFI: true},
		"ipmi-busy":              {busy: 3},
	} {
		if !slices.ContainsFunc(quirks, func(q Quirk) bool { return q.ID == id }) {
			t.Errorf("there is no quirk %s", id)
		}
		others := slices.DeleteFunc(slices.Clone(quirks), func(q Quirk) bool { return q.ID == id })
		c, err := openIPMI(t.Context(), f.start(t), others, noPause)
		if err != nil {
			t.Fatal(err)
		}
		err = Boot(t.Context(), c, noPause, PXE, always, func(string) {})
		c.Close()
		if err == nil && slices.Equal(f.starts(), []string{"Pxe"}) {
			t.Errorf("without %s it works too", id)
		}
	}
}

func TestIPMILoginSaysWhyItFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		f    *fakeIPMI
		want string
	}{
		"a wrong password": {&fakeIPMI{password: "other"}, "login: the login was refused; are bmc.username and bmc.password right, and is the account an operator at the BMC?"},
		"other suites":     {&fakeIPMI{suites: []ipmi.CipherSuiteID{}}, "login: it speaks neither cipher suite 17 nor 3; weaker ones are not used: switch one of these on at the BMC, or use Redfish"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := tc.f.start(t)
			_, err := Open(t.Context(), target, noPause)
			var e *Error
			if !errors.As(err, &e) || err.Error() != "asking "+target.String()+": "+tc.want {
				t.Errorf("got %v", err)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Error("the password is shown")
			}
		})
	}
}

// Whoever can send to the line must neither be believed nor end the program.
func TestForgedRepliesAreDropped(t *testing.T) {
	t.Parallel()
	f := &fakeIPMI{on: true}
	f.forge = func(p []byte) [][]byte {
		out := [][]byte{{6}, {6, 0, 0xff, 7, 6, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 64)}
		flip := slices.Clone(p)
		flip[len(flip)-1] ^= 1
		if p[5] == 0xc0 {
			out = append(out, flip)
			// Encrypted nonsense, without a code and with a wrong one.
			junk := slices.Clone(p)
			for i := 16; i < len(junk); i++ {
				junk[i] = byte(i * 7)
			}
			out = append(out, junk, junk[:32])
		}
		return append(out, p, p)
	}
	c, err := Open(t.Context(), f.start(t), noPause)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 5 {
		if p, err := c.Power(t.Context()); err != nil || p != On {
			t.Fatalf("got %v, %v", p, err)
		}
	}
}

func FuzzGuardAdmits(f *testing.F) {
	f.Add([]byte{6, 0, 0xff, 7, 6, 0xc0, 0, 0, 0, 0, 1, 0, 0, 0, 32, 0}, true)
	f.Add(outside(0x11, make([]byte, 36)), false)
	f.Add(outside(0x13, make([]byte, 72)), false)
	f.Fuzz(func(t *testing.T, p []byte, in bool) {
		g := newGuard(nil, suites()[0], "u", "p")
		g.rakp1 = make([]byte, 28)
		if len(p) > 5 {
			g.expect = p[5]
		}
		if in {
			g.k1, g.k2 = make([]byte, 32), make([]byte, 32)
		}
		if err := g.admit(p); err == nil && in {
			t.Errorf("a packet of the session without its code was let through: %x", p)
		}
	})
}
