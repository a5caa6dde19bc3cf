package lab

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Capture records every packet on the rack's bridge until stop is called, which
// returns the capture file.
func (l *Lab) Capture() (stop func() (string, error), err error) {
	path := filepath.Join(l.Work, "wire.pcap")
	cmd := exec.Command("tcpdump", "-i", bridgeName, "-w", path, "-s", "0", "-B", "65536", "--immediate-mode", "-U", "-Z", "root")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("recording the wire: %w", err)
	}
	// tcpdump writes the file header once it is listening.
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if st, err := os.Stat(path); err == nil && st.Size() >= 24 {
			break
		}
		if time.Now().After(deadline) {
			// The error says that it is gone already.
			_ = cmd.Process.Kill()
			return nil, fmt.Errorf("recording the wire: tcpdump did not start: %s", stderr.Bytes())
		}
	}
	return func() (string, error) {
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			return "", err
		}
		if err := cmd.Wait(); err != nil {
			return "", fmt.Errorf("recording the wire: %w: %s", err, stderr.Bytes())
		}
		return path, nil
	}, nil
}

// Secret is something that must never reach an unauthenticated client.
type Secret struct {
	// Name says what it is, for the report.
	Name  string
	Value []byte
}

// needleSize is the length of the pieces of a secret that are looked for. A
// packet boundary may cut one piece, but not all of them.
const needleSize = 16

// needles are the forms in which a secret could travel: raw, hexadecimal and
// base64, each cut into pieces.
func needles(s Secret) [][]byte {
	forms := [][]byte{s.Value, []byte(hex.EncodeToString(s.Value)), []byte(base64.StdEncoding.EncodeToString(s.Value))}
	for shift := 1; shift <= 2 && shift < len(s.Value); shift++ {
		// The same bytes at another offset of a larger base64 text.
		forms = append(forms, []byte(base64.StdEncoding.EncodeToString(s.Value[shift:])))
	}
	var out [][]byte
	for _, f := range forms {
		for i := 0; i+needleSize <= len(f); i += needleSize {
			out = append(out, f[i:i+needleSize])
		}
	}
	return out
}

// Scan looks for every secret in a stream and returns one line per find. It
// keeps a bounded window, so the stream may be large.
func Scan(where string, r io.Reader, secrets []Secret) ([]string, error) {
	// Index the needles by their first eight bytes: one map look-up per position.
	type hit struct {
		rest   []byte
		secret string
	}
	// Most positions are told apart by two bytes alone; the streams are gigabytes.
	index := map[[8]byte][]hit{}
	var begins [1 << 16]bool
	for _, s := range secrets {
		if len(s.Value) < needleSize {
			return nil, fmt.Errorf("the secret %s has %d bytes; fewer than %d cannot be told from chance", s.Name, len(s.Value), needleSize)
		}
		for _, n := range needles(s) {
			key := [8]byte(n[:8])
			index[key] = append(index[key], hit{n[8:], s.Name})
			begins[uint16(n[0])<<8|uint16(n[1])] = true
		}
	}
	var finds []string
	found := map[string]bool{}
	buf := make([]byte, 0, 1<<20+needleSize)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for i := 0; i+needleSize <= len(buf); i++ {
			if !begins[uint16(buf[i])<<8|uint16(buf[i+1])] {
				continue
			}
			for _, h := range index[[8]byte(buf[i:i+8])] {
				if bytes.Equal(buf[i+8:i+needleSize], h.rest) && !found[h.secret] {
					found[h.secret] = true
					finds = append(finds, fmt.Sprintf("%s holds %s", where, h.secret))
				}
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return finds, nil
		}
		if err != nil {
			return finds, fmt.Errorf("scanning %s: %w", where, err)
		}
		tail := copy(buf, buf[len(buf)-(needleSize-1):])
		buf = buf[:tail]
	}
}
