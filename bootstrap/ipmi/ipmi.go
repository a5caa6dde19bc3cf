// Package ipmi asks the machine's own management controller where it is in the network
// (IPMI 2.0, sections 22.24 and 23.2), so that a new machine's entry in cluster.yaml can
// be written from what the machine says.
//
// It only reads. What it finds is the word of whoever runs on the machine: nobody should
// send a password there because of it.
package ipmi

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Ask sends a request to the controller over the system interface and returns the data
// of its response, which begins with the completion code.
type Ask func(netFn, command byte, data ...byte) ([]byte, error)

// Controller is the controller's own network; fields that it does not say are unset.
type Controller struct {
	Address netip.Addr
	MAC     net.HardwareAddr
	// VLAN is 0 for none.
	VLAN int
}

// Network functions and commands (appendix G), and what is wanted of them.
const (
	netFnApp, getChannelInfo = 0x06, 0x42
	netFnTransport, getLAN   = 0x0c, 0x02

	// Parameters of a LAN channel (table 23-4).
	paramAddress, paramMAC, paramVLAN = 3, 5, 20

	// Table 6-3.
	mediumLAN = 4
	// Channels 1 to 11 may be of any kind (table 6-1).
	firstChannel, lastChannel = 1, 11
)

// Find returns the first LAN channel with an address.
func Find(ask Ask) (Controller, error) {
	asked := error(nil)
	for channel := byte(firstChannel); channel <= lastChannel; channel++ {
		info, err := data(ask(netFnApp, getChannelInfo, channel))
		if err != nil {
			asked = err // most have no such channel
			continue
		}
		// Table 22-29: the actual channel, then its medium.
		if len(info) < 2 || info[1]&0x7f != mediumLAN {
			continue
		}
		address, err := parameter(ask, channel, paramAddress, 4)
		if err != nil {
			asked = err
			continue
		}
		c := Controller{}
		if c.Address, _ = netip.AddrFromSlice(address); c.Address.IsUnspecified() {
			continue
		}
		if mac, err := parameter(ask, channel, paramMAC, 6); err == nil {
			c.MAC = mac
		}
		// Twelve bits, least significant byte first; the top one says that it is used.
		if vlan, err := parameter(ask, channel, paramVLAN, 2); err == nil && vlan[1]&0x80 != 0 {
			c.VLAN = int(vlan[1]&0x0f)<<8 | int(vlan[0])
		}
		return c, nil
	}
	if asked != nil {
		return Controller{}, fmt.Errorf("asking the BMC for its address: %w", asked)
	}
	return Controller{}, errors.New("asking the BMC for its address: no channel of it has an address in a LAN")
}

// parameter reads one of a LAN channel: its revision, then its value.
func parameter(ask Ask, channel, which byte, size int) ([]byte, error) {
	b, err := data(ask(netFnTransport, getLAN, channel, which, 0, 0))
	if err != nil {
		return nil, err
	}
	if len(b) < 1+size {
		return nil, fmt.Errorf("parameter %d of channel %d has %d bytes, want %d", which, channel, len(b)-1, size)
	}
	return b[1 : 1+size], nil
}

// data takes the completion code off a response.
func data(b []byte, err error) ([]byte, error) {
	switch {
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, errors.New("the response is empty")
	case b[0] != 0:
		return nil, fmt.Errorf("it refused with completion code %#02x", b[0])
	}
	return b[1:], nil
}
