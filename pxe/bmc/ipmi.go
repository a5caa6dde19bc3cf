package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/bougou/go-ipmi"
)

const (
	// A reply is waited for three seconds, five times: UDP loses some, and a BMC
	// answers nothing while it stores something.
	ipmiTimeout = 3 * time.Second
	ipmiRetries = 4
	// ipmiLogout bounds the end of a session, which nobody needs to hear of.
	ipmiLogout = 2 * time.Second
)

// ipmiBMC is a session with an IPMI 2.0 BMC.
type ipmiBMC struct {
	name   string
	api    *ipmi.Client
	line   *guard
	pause  Pause
	efi    ipmi.BIOSBootType
	info   Info
	effect Effect
}

// openIPMI logs in with the stronger suite that the BMC knows. Suites without
// authentication, integrity or encryption are not for use.
func openIPMI(ctx context.Context, t Target, quirks []Quirk, pause Pause) (*ipmiBMC, error) {
	host, port := t.Address, 623
	if h, p, err := net.SplitHostPort(t.Address); err == nil {
		host = h
		if port, err = strconv.Atoi(p); err != nil {
			return nil, fmt.Errorf("opening %s: %q is not a port", t, p)
		}
	}
	b := &ipmiBMC{name: t.String(), pause: pause, efi: ipmi.BIOSBootType(!t.BIOS)}
	for _, s := range suites() {
		var err error
		if b.api, err = ipmi.NewClient(host, port, t.Username, string(t.Password)); err != nil {
			return nil, fmt.Errorf("opening %s: %w", t, err)
		}
		d := &net.Dialer{Timeout: ipmiTimeout}
		conn, err := d.DialContext(ctx, "udp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return nil, b.failed("login", err)
		}
		b.line = newGuard(conn, s, t.Username, t.Password)
		b.api.WithUDPProxy(b.line).WithTimeout(ipmiTimeout).WithRetry(ipmiRetries + t.patience).
			WithCipherSuiteID(s.id).WithMaxPrivilegeLevel(ipmi.PrivilegeLevelOperator)
		err = b.ask("login", func() error { return b.api.Connect(ctx) })
		if err == nil {
			break
		}
		b.line.Close()
		// Some refuse a suite that they do not know, some say nothing.
		if s.last || !b.line.heard() || b.line.opened() {
			return nil, b.loginHint(err)
		}
	}
	if err := b.find(ctx, quirks); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// loginHint says what to do about a login that failed.
func (b *ipmiBMC) loginHint(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case !b.line.heard():
		e.Answer, e.Hint = "no answer", "is the address right, is IPMI over LAN switched on at the BMC, and is its network reachable from here?"
	case b.line.refusedSuite():
		e.Answer, e.Hint = "it speaks neither cipher suite 17 nor 3", "weaker ones are not used: switch one of these on at the BMC, or use Redfish"
	case b.line.opened():
		e.Answer, e.Hint = "the login was refused", "are bmc.username and bmc.password right, and is the account an operator at the BMC?"
	}
	return e
}

// ask runs a call of go-ipmi. That trusts what a BMC sends, so a reply that makes no
// sense ends the call and not this program.
func (b *ipmiBMC) ask(call string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &Error{BMC: b.name, Call: call, Answer: fmt.Sprintf("its reply makes no sense: %v", r)}
		}
	}()
	return b.failed(call, f())
}

func (b *ipmiBMC) failed(call string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{BMC: b.name, Call: call, Err: err}
	var code *ipmi.ResponseError
	var netErr net.Error
	switch {
	case errors.As(err, &code) && code.CompletionCode() != 0:
		e.Status, e.Answer = int(code.CompletionCode()), codeText(code)
		if e.Status == 0xd4 {
			e.Hint = "the account needs the privileges of an operator at the BMC"
		}
	case errors.Is(err, context.Canceled):
		e.Answer = "given up before it answered"
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &netErr) && netErr.Timeout():
		e.Answer = "no answer in time"
	default:
		e.Answer = shorten(err.Error())
	}
	return e
}

// codeText is the part of go-ipmi's text that says what a completion code means.
func codeText(code *ipmi.ResponseError) string {
	text := code.Error()
	if i := strings.LastIndex(text, "not normal: "); i >= 0 {
		text = text[i+len("not normal: "):]
	}
	return shorten(text)
}

// find looks up who the BMC is.
func (b *ipmiBMC) find(ctx context.Context, quirks []Quirk) error {
	var id *ipmi.GetDeviceIDResponse
	err := b.ask("Get Device ID", func() (err error) {
		id, err = b.api.GetDeviceID(ctx)
		return err
	})
	if err != nil {
		return err
	}
	b.info = Info{
		Kind: IPMI, Manufacturer: ipmi.OEM(id.ManufacturerID).String(),
		Manager: fmt.Sprintf("product %d", id.ProductID), Firmware: fmt.Sprintf("%d.%x", id.MajorFirmwareRevision, id.MinorFirmwareRevision),
	}
	// Reading the board's name takes dozens of calls: only where a quirk asks for it.
	for _, q := range quirks {
		if q.Match.Kind != IPMI || q.Match.Model.Regexp == nil || !q.Match.Vendor.matches(b.info.Manufacturer) {
			continue
		}
		var board *ipmi.FRU
		if err := b.ask("Read FRU Data", func() (err error) {
			board, err = b.api.GetFRU(ctx, 0, "")
			return err
		}); err == nil && board.BoardInfoArea != nil {
			b.info.Model = strings.Trim(string(board.BoardInfoArea.ProductName), "\x00 ")
		}
		break
	}
	b.effect = effectOf(quirks, b.info)
	return nil
}

// Info implements Controller.
func (b *ipmiBMC) Info() Info { return b.info }

// Close implements Controller.
func (b *ipmiBMC) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), ipmiLogout)
	defer cancel()
	_ = b.ask("logout", func() error { return b.api.Close(ctx) })
	b.line.Close()
}

// Power implements Controller.
func (b *ipmiBMC) Power(ctx context.Context) (Power, error) {
	var s *ipmi.GetChassisStatusResponse
	err := b.patiently(ctx, "Get Chassis Status", func() (err error) {
		s, err = b.api.GetChassisStatus(ctx)
		return err
	})
	switch {
	case err != nil:
		return "", err
	case s.PowerIsOn:
		return On, nil
	default:
		return Off, nil
	}
}

// Act implements Controller.
func (b *ipmiBMC) Act(ctx context.Context, a Action) error {
	control, ok := map[Action]ipmi.ChassisControl{
		PowerOn: ipmi.ChassisControlPowerUp, PowerOff: ipmi.ChassisControlPowerDown,
		Shutdown: ipmi.ChassisControlSoftShutdown, Reset: ipmi.ChassisControlHardReset,
	}[a]
	if !ok {
		return fmt.Errorf("switching a machine: there is no action %q", string(a))
	}
	return b.patiently(ctx, "Chassis Control "+string(a), func() error {
		_, err := b.api.ChassisControl(ctx, control)
		return err
	})
}

// BootOnce implements Controller.
func (b *ipmiBMC) BootOnce(ctx context.Context, d Device) error {
	if d != PXE {
		return &Error{BMC: b.name, Call: "Set System Boot Options", Answer: fmt.Sprintf("IPMI has no boot from %s", d), Hint: "use Redfish, or bmc.boot: pxe"}
	}
	want := ipmi.BootOptionParam_BootFlags{
		BootFlagsValid: true, BIOSBootType: b.efi, BootDeviceSelector: ipmi.BootDeviceSelectorForcePXE,
		Persist: b.effect.PersistentFlag && bool(b.efi),
	}
	if b.effect.KeepBootFlags {
		err := b.patiently(ctx, "Set System Boot Options (timeout)", func() error {
			return b.api.SetSystemBootOptionsParamFor(ctx, &ipmi.BootOptionParam_BMCBootFlagValidBitClear{DontClearOnCommandReceivedTimeout: true})
		})
		if e := (*Error)(nil); errors.As(err, &e) && !e.answered() {
			return err // OpenBMC refuses: it has no such timeout
		}
	}
	if err := b.patiently(ctx, "Set System Boot Options (device)", func() error {
		return b.api.SetSystemBootOptionsParamFor(ctx, &want)
	}); err != nil {
		return err
	}
	for try := 1; ; try++ {
		var now ipmi.BootOptionParam_BootFlags
		if err := b.patiently(ctx, "Get System Boot Options", func() error {
			return b.api.GetSystemBootOptionsParamFor(ctx, &now)
		}); err != nil {
			return err
		}
		// The valid bit is not looked at: OpenIPMI's simulator does not show it.
		if now.BootDeviceSelector == want.BootDeviceSelector {
			return nil
		}
		if try == showTries {
			return &Error{BMC: b.name, Call: "Set System Boot Options", Answer: fmt.Sprintf("it takes a boot from the network for the next start, and then shows %s", now.BootDeviceSelector), Hint: "boot it from the network by hand, and report the BMC's model and firmware"}
		}
		if err := b.pause(ctx, showPause); err != nil {
			return b.failed("Get System Boot Options", err)
		}
	}
}

// errNoMedia says what IPMI cannot do.
func (b *ipmiBMC) errNoMedia() error {
	return &Error{BMC: b.name, Call: "virtual media", Answer: "IPMI has none", Hint: "use Redfish, or insert the image at the BMC's own page"}
}

// InsertMedia implements Controller.
func (b *ipmiBMC) InsertMedia(context.Context, string) error { return b.errNoMedia() }

// EjectMedia implements Controller.
func (b *ipmiBMC) EjectMedia(context.Context) error { return b.errNoMedia() }

// patiently asks again for as long as the BMC says that it did nothing yet.
func (b *ipmiBMC) patiently(ctx context.Context, call string, f func() error) error {
	for try := 1; ; try++ {
		err := b.ask(call, f)
		if err == nil || try == busyTries || !b.effect.busy(err) {
			return err
		}
		if waited := b.pause(ctx, busyPause); waited != nil {
			return err
		}
	}
}
