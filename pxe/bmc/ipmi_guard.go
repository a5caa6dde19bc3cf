package bmc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"net"
	"sync"

	"github.com/bougou/go-ipmi"
)

// suite is a set of algorithms (IPMI 2.0 table 22-20).
type suite struct {
	id   ipmi.CipherSuiteID
	hash func() hash.Hash
	// auth, integrity and crypt are their numbers in an Open Session Response.
	auth, integrity, crypt byte
	// mac and code are the lengths of a key exchange code and of a packet's.
	mac, code int
	last      bool
}

func suites() []suite {
	return []suite{
		{id: ipmi.CipherSuiteID17, hash: sha256.New, auth: 3, integrity: 4, crypt: 1, mac: 32, code: 16},
		{id: ipmi.CipherSuiteID3, hash: sha1.New, auth: 1, integrity: 1, crypt: 1, mac: 20, code: 12, last: true},
	}
}

// Payload types of RMCP+ (IPMI 2.0 table 13-16).
const (
	payloadIPMI         = 0x00
	payloadOpenResponse = 0x11
	payloadRAKP1        = 0x12
	payloadRAKP2        = 0x13
	payloadRAKP4        = 0x15
)

// guard is the line to a BMC. go-ipmi takes every datagram for what it says it is:
// it accepts algorithms that nobody asked for, does not check the code of a packet,
// and a packet that decrypts to nonsense ends the program. So the guard lets through
// what belongs to a login, and after that only what carries the session's code; the
// keys follow from the login, which it sees passing.
type guard struct {
	net.Conn
	suite    suite
	user     string
	password Password

	mu       sync.Mutex
	expect   byte // kind of payload that answers what was written last, before the login
	got      bool // anything
	refused  bool // the suite
	agreed   bool // on the suite
	rakp1    []byte
	k1, k2   []byte // set when the login is through
	pending  [2][]byte
	sequence uint32
}

func newGuard(c net.Conn, s suite, user string, password Password) *guard {
	return &guard{Conn: c, suite: s, user: user, password: password}
}

// Dial implements golang.org/x/net/proxy.Dialer, by which go-ipmi takes a line.
func (g *guard) Dial(string, string) (net.Conn, error) { return g, nil }

func (g *guard) heard() bool        { return g.is(&g.got) }
func (g *guard) refusedSuite() bool { return g.is(&g.refused) }
func (g *guard) opened() bool       { return g.is(&g.agreed) }

func (g *guard) is(b *bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return *b
}

// Write remembers what the session's keys depend on. What is asked before a login it
// writes in IPMI 1.5's form: go-ipmi uses that of 2.0, which not all BMCs answer
// outside a session (OpenIPMI's simulator does not).
func (g *guard) Write(p []byte) (int, error) {
	kind, payload, ok := plain(p)
	g.mu.Lock()
	if ok && kind == payloadRAKP1 && len(payload) >= 28 {
		g.rakp1 = append([]byte(nil), payload...)
	}
	if g.expect = kind + 1; kind == payloadIPMI {
		g.expect = payloadIPMI
	}
	g.mu.Unlock()
	if ok && kind == payloadIPMI && len(payload) < 256 {
		old := append([]byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(payload))}, payload...)
		if _, err := g.Conn.Write(old); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return g.Conn.Write(p)
}

// Read drops what does not belong here.
func (g *guard) Read(p []byte) (int, error) {
	for {
		n, err := g.Conn.Read(p)
		if err != nil {
			return n, err
		}
		if g.admit(p[:n]) == nil {
			return n, nil
		}
	}
}

// Why a datagram is dropped.
var (
	errShape   = errors.New("it is no RMCP+ packet of this login")
	errSuite   = errors.New("it names other algorithms than were asked for")
	errCode    = errors.New("its code is wrong")
	errOld     = errors.New("its sequence number was used before")
	errPadding = errors.New("its padding is wrong")
)

// rmcpHeader is the length of RMCP's header, sessionHeader of RMCP+'s behind it.
const (
	rmcpHeader    = 4
	sessionHeader = 12
)

// plain splits an RMCP+ packet that belongs to no session.
func plain(p []byte) (kind byte, payload []byte, ok bool) {
	if len(p) < rmcpHeader+sessionHeader || p[0] != 6 || p[3] != 7 || p[4] != 6 || p[5]&0xc0 != 0 || binary.LittleEndian.Uint32(p[6:]) != 0 {
		return 0, nil, false
	}
	payload = p[rmcpHeader+sessionHeader:]
	if int(binary.LittleEndian.Uint16(p[14:])) != len(payload) {
		return 0, nil, false
	}
	return p[5], payload, true
}

// admit says why a datagram is not let through; nil when it is.
func (g *guard) admit(p []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.k1 != nil {
		return g.inSession(p)
	}
	// IPMI 1.5's form, without authentication: what a BMC can do, before any login.
	if len(p) >= 14 && p[0] == 6 && p[3] == 7 && p[4] == 0 && int(p[13]) == len(p)-14 && p[13] >= 8 && g.expect == payloadIPMI {
		g.got = true
		return nil
	}
	kind, payload, ok := plain(p)
	if !ok || kind != g.expect { // a reply that comes twice would be taken for the next one
		return errShape
	}
	switch kind {
	case payloadIPMI:
		if len(payload) < 8 {
			return errShape
		}
	case payloadOpenResponse:
		if len(payload) < 2 || payload[1] == 0 && len(payload) != 36 {
			return errShape
		}
		if payload[1] != 0 {
			g.refused = true
			break
		}
		if payload[16]&0x3f != g.suite.auth || payload[24]&0x3f != g.suite.integrity || payload[32]&0x3f != g.suite.crypt {
			return errSuite
		}
		g.agreed = true
	case payloadRAKP2:
		if len(payload) < 2 || payload[1] == 0 && len(payload) != 40+g.suite.mac || g.rakp1 == nil {
			return errShape
		}
		if payload[1] == 0 {
			g.derive(payload)
		}
	case payloadRAKP4:
		if len(payload) < 2 || payload[1] == 0 && len(payload) != 8+g.suite.code || g.pending[0] == nil {
			return errShape
		}
		if payload[1] == 0 {
			g.k1, g.k2 = g.pending[0], g.pending[1]
		}
	default:
		return errShape
	}
	g.got = true
	return nil
}

// derive makes the session's keys (IPMI 2.0, 13.31 and 13.32) from RAKP messages 1
// and 2.
func (g *guard) derive(rakp2 []byte) {
	sum := func(key []byte, parts ...[]byte) []byte {
		h := hmac.New(g.suite.hash, key)
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	constant := func(b byte) []byte {
		c := make([]byte, 20)
		for i := range c {
			c[i] = b
		}
		return c
	}
	sik := sum([]byte(g.password), g.rakp1[8:24], rakp2[8:24], g.rakp1[24:25], []byte{byte(len(g.user))}, []byte(g.user))
	g.pending = [2][]byte{sum(sik, constant(1)), sum(sik, constant(2))}
}

// inSession checks a packet of the session: its code, its sequence number and that
// it decrypts to what has the form of a message.
func (g *guard) inSession(p []byte) error {
	if len(p) < rmcpHeader+sessionHeader+2+g.suite.code || p[0] != 6 || p[3] != 7 || p[4] != 6 || p[5] != 0xc0|payloadIPMI {
		return errShape
	}
	code := len(p) - g.suite.code
	h := hmac.New(g.suite.hash, g.k1)
	h.Write(p[rmcpHeader:code])
	if !hmac.Equal(h.Sum(nil)[:g.suite.code], p[code:]) {
		return errCode
	}
	n := int(binary.LittleEndian.Uint16(p[14:]))
	body := p[rmcpHeader+sessionHeader:]
	if n > len(body)-g.suite.code-2 || n < 2*aes.BlockSize || n%aes.BlockSize != 0 {
		return errShape
	}
	sequence := binary.LittleEndian.Uint32(p[10:])
	if sequence <= g.sequence {
		return errOld
	}
	block, err := aes.NewCipher(g.k2[:16])
	if err != nil {
		return err
	}
	text := make([]byte, n-aes.BlockSize)
	cipher.NewCBCDecrypter(block, body[:aes.BlockSize]).CryptBlocks(text, body[aes.BlockSize:n])
	if pad := int(text[len(text)-1]); pad >= aes.BlockSize || len(text)-1-pad < 8 {
		return errPadding
	}
	g.sequence = sequence
	return nil
}
