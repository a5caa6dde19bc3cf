package host

import (
	"os"
	"time"
	"unsafe"

	openipmi "github.com/bougou/go-ipmi/open"
)

// IPMIPath is the kernel's interface to the machine's management controller; the module
// ipmi_devintf makes it.
const IPMIPath = "/dev/ipmi0"

// ipmiTime is how long a response may take: IPMI 2.0 gives a controller five seconds.
const ipmiTime = 5 * time.Second

// IPMI is an open interface to the management controller. It is not safe for concurrent
// use.
type IPMI struct {
	file *os.File
	sent int64
}

// IPMI opens it; the caller closes it. The error is ErrNotExist where there is no
// controller, or no driver for it.
func (h *Host) IPMI() (*IPMI, error) {
	f, err := os.OpenFile(h.Path(IPMIPath), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &IPMI{file: f}, nil
}

// Ask sends a request and returns the data of its response, which begins with the
// completion code.
func (d *IPMI) Ask(netFn, command byte, data ...byte) ([]byte, error) {
	d.sent++
	to := &openipmi.IPMI_SYSTEM_INTERFACE_ADDR{AddrType: openipmi.IPMI_SYSTEM_INTERFACE_ADDR_TYPE, Channel: openipmi.IPMI_BMC_CHANNEL}
	message := openipmi.IPMI_MSG{NetFn: netFn, Cmd: command, DataLen: uint16(len(data)), Data: unsafe.SliceData(data)}
	return openipmi.SendCommand(d.file, &openipmi.IPMI_REQ{Addr: to, AddrLen: int(unsafe.Sizeof(*to)), MsgID: d.sent, Msg: message}, ipmiTime)
}

// Close closes it.
func (d *IPMI) Close() error { return d.file.Close() }
