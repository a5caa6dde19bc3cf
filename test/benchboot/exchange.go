package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// relayAddress is whom servers answer: a relay's, as with perfdhcp, so that they all use
// UDP and nobody needs a neighbour entry for an address that was just given out.
const relayAddress = "10.96.0.3"

// patience is how long a client waits before it says the same again.
const patience = time.Second

// Where the fields of a DHCP message are (RFC 2131 section 2), and how long one is that has
// the options of these clients.
const (
	dhcpXID, dhcpYours, dhcpRelay, dhcpCard, dhcpOptions = 4, 16, 24, 28, 240
	dhcpLength                                           = 300
)

// asker is a client that is in the middle of an exchange.
type asker struct {
	client
	xid        uint32
	requesting bool
	message    [dhcpLength]byte
}

// exchange has so many new clients get an address by DISCOVER, OFFER, REQUEST and ACK
// (RFC 2131 section 3.1), of whom no more than window ask at a time, and returns how long that
// took and how often one had to ask again. One address given to two of them is an error.
func (r *rack) exchange(ctx context.Context, clients, window int) (took time.Duration, again int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r.port = 67
	r.generation++
	askers := make([]asker, window)
	given := map[netip.Addr]bool{}
	begun, done, begin := 0, 0, time.Now()
	for i := range askers {
		askers[i].client = client{card: card(0), address: r.machines[0].address, port: 67}
		r.discover(&askers[i], begun, i, window)
		begun++
	}
	for done < clients {
		err := r.hear(func(frame []byte) error {
			message := r.message(frame)
			if message == nil {
				return nil
			}
			xid := binary.BigEndian.Uint32(message[dhcpXID:])
			a := &askers[int(xid)%window]
			if a.done || a.xid != xid {
				return nil
			}
			address := netip.AddrFrom4([4]byte(message[dhcpYours:]))
			switch kind := option(message, 53); {
			case len(kind) != 1:
				return fmt.Errorf("an answer without a message type")
			case kind[0] == 2 && !a.requesting:
				r.request(a, address, option(message, 54))
			case kind[0] == 6:
				return fmt.Errorf("%s was offered and then refused", address)
			case kind[0] == 5 && a.requesting:
				if given[address] {
					return fmt.Errorf("%s was given to two clients", address)
				}
				given[address] = true
				done++
				if a.done = begun >= clients; !a.done {
					r.discover(a, begun, int(xid)%window, window)
					begun++
				}
			}
			return nil
		})
		now := time.Now()
		if err == nil && (ctx.Err() != nil || now.Sub(begin) > time.Minute) {
			err = fmt.Errorf("%d of %d clients have no address after %s: %w", clients-done, clients, now.Sub(begin), errors.Join(ctx.Err(), context.DeadlineExceeded))
		}
		if err != nil {
			return 0, 0, err
		}
		for i := range askers {
			if a := &askers[i]; !a.done && now.Sub(a.at) > patience {
				again++
				r.say(&a.client, a.last)
			}
		}
	}
	return time.Since(begin), again, r.flush()
}

// message is the DHCP message of a frame, or nil.
func (r *rack) message(frame []byte) []byte {
	if len(frame) < headersLen+dhcpOptions || frame[etherLen] != 0x45 || frame[etherLen+9] != unix.IPPROTO_UDP {
		return nil
	}
	udp := frame[etherLen+ipLen:]
	if binary.BigEndian.Uint16(udp[2:]) != r.port || udp[udpLen] != 2 {
		return nil
	}
	return udp[udpLen:]
}

// option is one of a message's, without its length; nil when it is not there.
func option(message []byte, code byte) []byte {
	for o := message[dhcpOptions:]; len(o) > 1 && o[0] != 255; {
		if o[0] == 0 {
			o = o[1:]
			continue
		}
		if len(o) < 2+int(o[1]) {
			return nil
		}
		if o[0] == code {
			return o[2:][:o[1]]
		}
		o = o[2+int(o[1]):]
	}
	return nil
}

// discover begins the nth exchange with a card that no server has seen.
func (r *rack) discover(a *asker, nth, at, window int) {
	a.xid, a.requesting = uint32(nth*window+at), false
	a.message = [dhcpLength]byte{1, 1, 6, 1} // a request from Ethernet that one relay has passed on
	binary.BigEndian.PutUint32(a.message[dhcpXID:], a.xid)
	relay := a.address.As4()
	copy(a.message[dhcpRelay:], relay[:])
	copy(a.message[dhcpCard:], []byte{2, 0xbe, byte(r.generation), byte(nth >> 16), byte(nth >> 8), byte(nth)})
	r.ask(a, 1)
}

// request asks for what was offered.
func (r *rack) request(a *asker, offered netip.Addr, server []byte) {
	a.requesting = true
	address := offered.As4()
	r.ask(a, 3, append([]byte{50, 4}, address[:]...), append([]byte{54, byte(len(server))}, server...))
}

// ask sends a message of a type, with options besides those of every one.
func (r *rack) ask(a *asker, kind byte, options ...[]byte) {
	o := append(a.message[:dhcpOptions-4], 99, 130, 83, 99, 53, 1, kind, 55, 7, 1, 28, 2, 3, 15, 6, 12)
	for _, more := range options {
		o = append(o, more...)
	}
	clear(a.message[len(append(o, 255)):])
	r.say(&a.client, a.message[:])
}
