package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
)

// TPMPath is the TPM 2.0 behind the kernel's resource manager, which lets several
// programs use it. A TPM 1.2 has no such device.
const TPMPath = "/dev/tpmrm0"

// TPM opens the machine's TPM 2.0 for commands; the caller closes it. An emulator's
// socket in the device's place is as good. Errors keep the system's: ErrNotExist where
// there is none, EBUSY where somebody holds it.
func (h *Host) TPM() (io.ReadWriteCloser, error) {
	name := h.Path(TPMPath)
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	switch info.Mode().Type() {
	case fs.ModeSocket:
		conn, err := net.Dial("unix", name)
		if err != nil {
			return nil, err
		}
		return tpmSocket{conn}, nil
	case fs.ModeDevice | fs.ModeCharDevice:
		return os.OpenFile(name, os.O_RDWR, 0)
	default:
		return nil, fmt.Errorf("opening %s: it is no device", TPMPath)
	}
}

// tpmSocket reads a whole response at once, as the device gives it.
type tpmSocket struct{ net.Conn }

// tpmHeader is that of a response: tag, size of the whole, code (TPM 2.0 Library,
// Part 1, section 18).
const tpmHeader = 10

func (s tpmSocket) Read(b []byte) (int, error) {
	if len(b) < tpmHeader {
		return 0, io.ErrShortBuffer
	}
	if _, err := io.ReadFull(s.Conn, b[:tpmHeader]); err != nil {
		return 0, err
	}
	size := int(binary.BigEndian.Uint32(b[2:]))
	if size < tpmHeader || size > len(b) {
		return 0, errors.New("reading from the TPM: a response of an impossible size")
	}
	_, err := io.ReadFull(s.Conn, b[tpmHeader:size])
	return size, err
}
