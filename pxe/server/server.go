// Package server runs the boot protocols together in one process.
package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
	"github.com/imagectl/imagectl/pxe/grub"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/quirk"
	"github.com/imagectl/imagectl/pxe/syslog"
	"github.com/imagectl/imagectl/pxe/tftp"
)

const (
	biosName     = "undionly.kpxe"
	uefiName     = "snponly.efi"
	arm64Name    = "snponly-arm64.efi"
	autoexecName = "autoexec.ipxe"
)

// Extras says which boot programs are served besides iPXE for BIOS and x86-64: those that
// cluster.yaml names.
type Extras struct{ GRUB, Arm64 bool }

// BootFiles are what DHCP points to, for a server at an address that has these
// programs for UEFI HTTP boot at a URL.
func BootFiles(at netip.AddrPort, uefi string, programs map[boot.Firmware]string, extras Extras) dhcp.BootFiles {
	f := dhcp.BootFiles{BIOS: biosName, UEFI: uefiName, Shim: grub.ShimName, Script: dhcp.ScriptURL(at), HTTP: uefi, Programs: programs}
	if extras.Arm64 {
		f.UEFIArm64 = arm64Name
	}
	return f
}

// IPXEName is by what UEFI loads iPXE over HTTP; the names of two architectures differ, for
// nothing else in what it asks for tells them apart.
func IPXEName(f boot.Firmware) string {
	if f == boot.UEFIarm64 {
		return arm64Name
	}
	return uefiName
}

// UEFIURL begins the URLs that UEFI HTTP boot gets of a server at an address. With a
// tlsPort other than 0 they are HTTPS for IPv4 and, since its certificate is for that
// address only, none for IPv6.
func UEFIURL(at netip.AddrPort, tlsPort int) string {
	switch {
	case tlsPort == 0:
		return "http://" + at.String()
	case at.Addr().Is4():
		return "https://" + netip.AddrPortFrom(at.Addr(), uint16(tlsPort)).String()
	}
	return ""
}

// TFTPNames are the files that TFTP has for everybody.
func TFTPNames(extras Extras) []string {
	names := []string{biosName, uefiName, autoexecName}
	if extras.Arm64 {
		names = append(names, arm64Name)
	}
	if extras.GRUB {
		names = append(names, grub.ShimName, grub.ProgramName, grub.ConfigName)
	}
	return names
}

// BootFiles6 are the same for DHCPv6 at an IPv6 address.
func BootFiles6(at netip.AddrPort, uefi string, programs map[boot.Firmware]string, extras Extras) dhcp6.BootFiles {
	base := "tftp://[" + at.Addr().String() + "]/"
	f := dhcp6.BootFiles{UEFI: base + uefiName, Script: dhcp.ScriptURL(at), HTTP: uefi, Programs: programs}
	if extras.Arm64 {
		f.UEFIArm64 = base + arm64Name
	}
	return f
}

// Task is one thing that runs as long as the server does. Run returns nil when
// ctx ends.
type Task struct {
	Name string
	Run  func(ctx context.Context) error
}

// Run runs tasks until one fails or ctx ends, and waits for all of them. It
// returns the first error with the task's name; a task that ends early without
// one is an error too.
func Run(ctx context.Context, tasks ...Task) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		g.Go(func() error {
			err := t.Run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("it ended by itself")
			}
			if err != nil {
				return fmt.Errorf("running %s: %w", t.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Source is what all boot protocols ask; pxe/catalog implements it.
type Source interface {
	boot.Source
	Network() *boot.Network
	Network6() *boot.Network6
	Blob(sha256 string) (boot.Blob, bool)
}

// Config is what the boot protocols need. All fields but Log are required; Leases
// only where DHCP gives out addresses.
type Config struct {
	Sockets listen.Sockets
	// Address and HTTPPort are how clients reach us.
	Address  netip.Addr
	HTTPPort int
	// Address6 is the same for machines that boot by IPv6, where there are sockets for
	// them; DUID is our name in DHCPv6, DUIDs are those of Peers, and Leases6 are what
	// Leases are.
	Address6 netip.Addr
	DUID     dhcpv6.DUID
	DUIDs    []dhcpv6.DUID
	Leases6  dhcp6.Store
	Source   Source
	// Open opens a public file by digest, and those of HTTPBoot.
	Open func(sha256 string) (io.ReadSeekCloser, error)
	// HTTPBoot is what UEFI loads by HTTP, by firmware; what is not here gets silence.
	HTTPBoot map[boot.Firmware]httpboot.Program
	// BootTLS and BootTLSPort let UEFI do that by HTTPS, where there is a socket for it.
	BootTLS     *tls.Config
	BootTLSPort int
	// IPXEBIOS and IPXEUEFI are iPXE's undionly.kpxe and snponly.efi, IPXEArm64 that for
	// arm64; nil where such machines get no boot program by PXE.
	IPXEBIOS, IPXEUEFI, IPXEArm64 []byte
	// Shim and GRUB are shimx64.efi and what it loads; nil where no machine boots by them.
	Shim, GRUB []byte
	Leases     dhcp.Store
	// Peers are further servers that share Leases, and Share is what this one offers
	// first.
	Peers    []netip.Addr
	Share    dhcp.Share
	Recorder boot.Recorder
	// Heard gets what machines say by syslog, where there is a socket for it, with the
	// MAC address that their address belongs to, or else the address, and whether that is a
	// machine's of cluster.yaml.
	Heard func(machine string, listed bool, l syslog.Line)
	// Meters: each may be nil.
	Meters Meters
	Log    *slog.Logger
}

// Meters count what each protocol does.
type Meters struct {
	DHCP DHCPMeter
	TFTP tftp.Meter
	HTTP httpboot.Meter
	// Syslog counts packets.
	Syslog syslog.Meter
}

// DHCPMeter counts both protocols.
type DHCPMeter interface {
	dhcp.Meter
	dhcp6.Meter
}

// BootTasks are DHCP (when a socket of it is open), TFTP and HTTP. The tasks close the
// sockets.
func BootTasks(cfg Config) ([]Task, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	at, at6 := netip.AddrPortFrom(cfg.Address, uint16(cfg.HTTPPort)), netip.AddrPortFrom(cfg.Address6, uint16(cfg.HTTPPort))
	script := dhcp.ScriptURL(at)
	quirks, err := quirk.Load()
	if err != nil {
		return nil, err
	}
	var tasks []Task
	// By default nobody knows whose address it is that fetches by TFTP.
	card := func(netip.Addr) (net.HardwareAddr, bool) { return nil, false }
	holds := func(net.HardwareAddr) []string { return nil }
	knows := witness{holder: card, addressOf: func(net.HardwareAddr) (netip.Addr, bool) { return netip.Addr{}, false }, source: cfg.Source}
	line, httpLine := &admit.Line{}, lineByHTTP(cfg.HTTPBoot)
	tlsPort := 0
	if cfg.Sockets.BootTLS != nil {
		tlsPort = cfg.BootTLSPort
	}
	programs, extras := map[boot.Firmware]string{}, Extras{GRUB: cfg.GRUB != nil, Arm64: cfg.IPXEArm64 != nil}
	for firmware, p := range cfg.HTTPBoot {
		programs[firmware] = p.Name
	}
	if sockets := dhcpSockets(cfg.Sockets); len(sockets) > 0 {
		files := BootFiles(at, UEFIURL(at, tlsPort), programs, extras)
		if cfg.Sockets.Syslog != nil {
			files.Syslog = cfg.Address
		}
		s, err := dhcp.NewServer(dhcp.Config{
			Address: cfg.Address, Files: files,
			Quirks: quirks, Source: cfg.Source, Store: cfg.Leases, Line: line, HTTPLine: httpLine, Peers: cfg.Peers, Share: cfg.Share, Recorder: cfg.Recorder, Meter: cfg.Meters.DHCP, Log: cfg.Log.With("server", "dhcp"),
		})
		if err != nil {
			return nil, err
		}
		card, holds = s.Card, s.Holds
		knows.holder, knows.addressOf = s.Holder, s.AddressOf
		tasks = append(tasks, Task{"dhcp", func(ctx context.Context) error { return s.Serve(ctx, sockets...) }})
	}
	if cfg.Sockets.DHCP6 != nil {
		s, err := dhcp6.NewServer(dhcp6.Config{
			Address: cfg.Address6, DUID: cfg.DUID, Peers: cfg.DUIDs, Line: line, HTTPLine: httpLine, Files: BootFiles6(at6, UEFIURL(at6, tlsPort), programs, extras),
			Source: cfg.Source, Holds: holds, Store: cfg.Leases6, Recorder: cfg.Recorder, Meter: cfg.Meters.DHCP, Log: cfg.Log.With("server", "dhcp6"),
		})
		if err != nil {
			return nil, err
		}
		card4, holder4 := card, knows.holder
		card = func(a netip.Addr) (net.HardwareAddr, bool) {
			if a.Is4() {
				return card4(a)
			}
			return s.Card(a)
		}
		knows.holder = func(a netip.Addr) (net.HardwareAddr, bool) {
			if a.Is4() {
				return holder4(a)
			}
			return s.Card(a)
		}
		tasks = append(tasks,
			Task{"dhcp6", func(ctx context.Context) error { return s.Serve(ctx, cfg.Sockets.DHCP6) }},
			Task{"router advice", cfg.adviseOnRouters},
		)
	}
	meet := meeting(func(m boot.Machine, client netip.Addr) boot.Machine {
		mac, ok := card(client)
		m.Here, m.Holds = ok && bytes.Equal(mac, m.MAC), holds(m.MAC)
		return m
	})
	if len(dhcpSockets(cfg.Sockets)) == 0 && cfg.Sockets.DHCP6 == nil {
		meet = believe // nobody here knows whose address it is
	}
	tftpConfig := tftp.Config{
		MTU:   cfg.Sockets.MTU,
		Meter: cfg.Meters.TFTP,
		Log:   cfg.Log.With("server", "tftp"),
		Effect: func(client netip.Addr) quirk.Effect {
			mac, ok := card(client)
			if !ok {
				return quirk.Effect{}
			}
			e, _ := quirks.Apply(quirk.TFTP, quirk.Client{MAC: mac}, cfg.Source.Decide(boot.Machine{MAC: mac}).Quirks)
			return e
		},
		Started: func(client netip.Addr, name string) {
			if mac, ok := card(client); ok {
				cfg.fetched(mac, "fetches "+name+" by TFTP", boot.Refusal{})
			}
		},
		Waits: func(client netip.Addr, before int) {
			line.Crowded(time.Now())
			if mac, ok := card(client); ok {
				cfg.fetched(mac, fmt.Sprintf("waits for its turn to load by TFTP, behind %d others", before), boot.Refusal{})
			}
		},
		Loaded: func(client netip.Addr, name string) {
			if mac, ok := card(client); ok && slices.Contains([]string{biosName, uefiName, arm64Name, grub.ShimName}, name) {
				line.Done(admit.MAC(mac), time.Now())
			}
		},
		Refused: func(client netip.Addr, code, reason string) {
			mac, _ := card(client) // counted also when nobody knows whose address it is
			cfg.fetched(mac, reason+" ("+code+")", boot.Refusal{Code: code, Reason: reason})
		},
	}
	single := func(a netip.Addr) bool {
		_, ok := card(a)
		return ok
	}
	handler := httpboot.New(httpboot.Config{Source: cfg.Source, Meet: meet, Open: cfg.Open, Server: at, Server6: at6, Programs: cfg.HTTPBoot, Single: single, Doubt: knows.doubt,
		Waits:    func() { httpLine.Crowded(time.Now()) },
		Loaded:   func(mac net.HardwareAddr) { httpLine.Done(admit.MAC(mac), time.Now()) },
		Recorder: cfg.Recorder, Meter: cfg.Meters.HTTP, Log: cfg.Log.With("server", "http")})
	tasks = append(tasks,
		cfg.tftpTask("tftp", cfg.Sockets.TFTP, tftpConfig, script, meet, knows.doubt),
		HTTPTask("http", cfg.Sockets.HTTP, handler, cfg.Log),
	)
	manner6 := usual()
	manner6.single = single
	if cfg.Sockets.TFTP6 != nil {
		tasks = append(tasks,
			cfg.tftpTask("tftp6", cfg.Sockets.TFTP6, tftpConfig, dhcp.ScriptURL(at6), meet, knows.doubt),
			httpTask("http6", cfg.Sockets.HTTP6, handler, cfg.Log, manner6),
		)
	}
	tasks = append(tasks, Task{"interfaces", func(ctx context.Context) error { return cfg.Sockets.KeepOpen(ctx, cfg.Log) }})
	if cfg.Sockets.BootTLS != nil {
		failed := handshakes(func(from netip.Addr, err error) {
			reason := handshakeFailure(err)
			cfg.Log.Info("handshake failed", "server", "https boot", "client", from, "reason", reason)
			if mac, ok := card(from); ok { // else it may be anybody who looks which ports are open
				cfg.fetched(mac, reason+" ("+codeTLS+")", boot.Refusal{Code: codeTLS, Reason: reason})
			}
		})
		tasks = append(tasks, bootTLSTask(cfg.Sockets.BootTLS, handler, cfg.BootTLS, cfg.Log, manner{state: failed}))
	}
	if cfg.Sockets.Syslog != nil {
		tasks = append(tasks, Task{"syslog", func(ctx context.Context) error {
			return syslog.Serve(ctx, cfg.Sockets.Syslog, syslog.Config{Meter: cfg.Meters.Syslog, Take: func(from netip.Addr, l syslog.Line) {
				machine, listed := from.String(), cfg.Source.Network().Reserved[from] != ""
				if mac, ok := card(from); ok {
					machine, listed = mac.String(), cfg.Source.Decide(boot.Machine{MAC: mac}).Name != ""
				}
				cfg.Heard(machine, listed, l)
			}})
		}})
	}
	return tasks, nil
}

// lineByHTTP is for UEFI HTTP boot, which gives up when an answer does not begin within
// five seconds. It loads iPXE, or the whole installer, of which a thousandth as many can
// be sent in a second.
func lineByHTTP(programs map[boot.Firmware]httpboot.Program) *admit.Line {
	l := &admit.Line{Patience: 4 * time.Second}
	for _, p := range programs {
		if p.Installer {
			l.First, l.Least = 8, 0.25
		}
	}
	return l
}

// adviseOnRouters warns once of a network in which no machine will ask DHCPv6.
func (cfg Config) adviseOnRouters(ctx context.Context) error {
	defer cfg.Sockets.Routers.Close()
	advice, err := dhcp6.Advice(ctx, cfg.Sockets.Routers, cfg.Source.Network6().Stateless)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		cfg.Log.Warn("router advertisements not heard", "error", err)
	case advice != "":
		cfg.Log.Warn("IPv6 boot will not work here", "reason", advice)
	}
	<-ctx.Done()
	return nil
}

// meeting tells of a client at an address what is known of the card that it says it has.
type meeting func(m boot.Machine, client netip.Addr) boot.Machine

// believe is for a network in which DHCP is all another server's (boot.dhcp: off): who asks
// for boot files is all that is ever seen of a machine there.
func believe(m boot.Machine, _ netip.Addr) boot.Machine {
	m.Here = true
	return m
}

// tftpTask serves the boot files; those of iPXE that it asks for lead to the script.
func (cfg Config) tftpTask(name string, conn net.PacketConn, c tftp.Config, script string, meet meeting, doubt func(netip.Addr, boot.Machine, string) string) Task {
	c.Files = map[string][]byte{biosName: cfg.IPXEBIOS, uefiName: cfg.IPXEUEFI, autoexecName: []byte(httpboot.Autoexec(script))}
	if cfg.IPXEArm64 != nil {
		c.Files[arm64Name] = cfg.IPXEArm64
	}
	if cfg.GRUB != nil {
		c.Files[grub.ShimName], c.Files[grub.ProgramName], c.Files[grub.ConfigName] = cfg.Shim, cfg.GRUB, []byte(grub.Config(cfg.Address))
		c.Find = func(client netip.Addr, name string) (io.ReadSeekCloser, bool) {
			return cfg.findForGRUB(meet, client, name, doubt)
		}
	}
	return Task{name, func(ctx context.Context) error { return tftp.Serve(ctx, conn, c) }}
}

// fetched records what becomes of a TFTP request.
func (cfg Config) fetched(mac net.HardwareAddr, detail string, no boot.Refusal) {
	e := boot.Event{At: time.Now(), Machine: boot.Machine{MAC: mac}, Stage: boot.StageNBP, Detail: detail, Refusal: no}
	if mac != nil {
		e.Name = cfg.Source.Decide(e.Machine).Name
	}
	cfg.Recorder.Record(e)
}

func dhcpSockets(from listen.Sockets) []dhcp.Socket {
	var out []dhcp.Socket
	for _, l := range append([]listen.LinkSockets{{DHCP: from.DHCP, Broadcast: from.Broadcast, BootServer: from.BootServer}}, from.Links...) {
		if l.DHCP != nil {
			out = append(out, dhcp.Socket{Conn: l.DHCP, Address: l.Address})
		}
		if l.Broadcast != nil {
			out = append(out, dhcp.Socket{Conn: l.Broadcast, Address: l.Address})
		}
		if l.BootServer != nil {
			out = append(out, dhcp.Socket{Conn: l.BootServer, Address: l.Address, BootServer: true})
		}
	}
	return out
}
