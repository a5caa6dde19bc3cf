// Package bmc talks to the management controllers of machines: power, a boot from
// the network or from virtual media at the next start, and media itself. Two
// protocols do that: Redfish (DMTF DSP0266) and IPMI 2.0 over RMCP+.
//
// What single vendors need done differently is data: quirks.yaml, each entry with
// its match, its effect and where it was seen. Nothing here sets a boot order for
// good, and nothing asks for the disk: a boot from the network is for one start.
//
// A Controller is one login: open it, do what is to be done, close it. It is not
// safe for concurrent use, and most BMCs are not either; Rack opens one at a time.
package bmc

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"
)

// Kind is the protocol that a BMC speaks.
type Kind string

// The protocols.
const (
	Redfish Kind = "redfish"
	IPMI    Kind = "ipmi"
)

// Password is a secret that does not print.
type Password string

// String implements fmt.Stringer.
func (Password) String() string { return "(password)" }

// GoString implements fmt.GoStringer.
func (Password) GoString() string { return "(password)" }

// LogValue implements slog.LogValuer.
func (Password) LogValue() slog.Value { return slog.StringValue("(password)") }

// MarshalText keeps it out of JSON.
func (Password) MarshalText() ([]byte, error) { return []byte("(password)"), nil }

// Target is how one BMC is reached.
type Target struct {
	Kind Kind
	// Address is a host or host:port. Redfish is https, by default at 443; IPMI is
	// UDP, by default at 623.
	Address  string
	Username string
	Password Password
	// TLS is whom Redfish trusts; see Trust.
	TLS *tls.Config
	// System is the id of the system below /redfish/v1/Systems; empty where there
	// is only one.
	System string
	// BIOS says that the machine boots by BIOS and not by UEFI.
	BIOS bool

	// patience is how many more times a reply by UDP is waited for; tests on a machine
	// that does much else need it.
	patience int
}

// String names the BMC in errors and logs.
func (t Target) String() string { return fmt.Sprintf("%s %s", t.Kind, t.Address) }

// Power is a machine's power state.
type Power string

// The power states. Changing is on the way from one to the other.
const (
	On       Power = "on"
	Off      Power = "off"
	Changing Power = "changing"
)

// Action is something that a BMC does to a machine's power at once.
type Action string

// The actions. What they lead to is seen by asking for the power state.
const (
	PowerOn Action = "on"
	// PowerOff takes the power away.
	PowerOff Action = "off"
	// Shutdown asks the operating system to switch itself off.
	Shutdown Action = "shutdown"
	// Reset starts a machine that is on again without taking the power away.
	Reset Action = "reset"
)

// Device is what a machine boots from, once. There is no disk among them: what
// boots a disk is the machine's own order, which is nobody's to change from here.
type Device string

// The devices.
const (
	// PXE is the network card's own boot: DHCP and TFTP.
	PXE Device = "pxe"
	// HTTP is UEFI HTTP boot; Redfish only.
	HTTP Device = "http"
	// CD is virtual media.
	CD Device = "cd"
)

// Info is what a BMC says about itself and its machine; any of it may be empty.
type Info struct {
	Kind Kind
	// Vendor and Product are the BMC's own (Redfish's service root).
	Vendor, Product string
	// Manufacturer and Model are the machine's.
	Manufacturer, Model string
	// Manager and Firmware are the BMC's model and its version.
	Manager, Firmware string
}

// Controller is a login at one BMC. Its errors are *Error.
type Controller interface {
	Info() Info
	Power(ctx context.Context) (Power, error)
	// Act asks once, and again only where the BMC said that it did nothing yet.
	Act(ctx context.Context, a Action) error
	// BootOnce makes the next start, and only that, use d. It returns when the BMC
	// shows that it will.
	BootOnce(ctx context.Context, d Device) error
	// InsertMedia makes the image at a URL the machine's CD; what was in there is
	// ejected.
	InsertMedia(ctx context.Context, url string) error
	EjectMedia(ctx context.Context) error
	// Close logs out; it takes seconds at most.
	Close()
}

// Pause waits, or returns early with ctx's error.
type Pause func(ctx context.Context, d time.Duration) error

// Sleep is the Pause of real time.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Open logs in at a BMC and looks up its quirks. ctx is for the login only.
func Open(ctx context.Context, t Target, pause Pause) (Controller, error) {
	quirks, err := Quirks()
	if err != nil {
		return nil, err
	}
	switch t.Kind {
	case Redfish:
		return openRedfish(ctx, t, quirks, pause)
	case IPMI:
		return openIPMI(ctx, t, quirks, pause)
	default:
		return nil, fmt.Errorf("opening %s: want redfish or ipmi", t)
	}
}
