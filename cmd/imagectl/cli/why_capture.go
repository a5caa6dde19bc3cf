package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
	"github.com/imagectl/imagectl/pxe/quirk"
	"github.com/imagectl/imagectl/pxe/replay"
	"github.com/imagectl/imagectl/pxe/server"
)

func isCapture(arg string) bool {
	return slices.Contains([]string{".pcap", ".pcapng", ".cap", ".hex"}, strings.ToLower(filepath.Ext(arg)))
}

// whyCapture replays a capture by the cluster.yaml that is here.
func (g *globals) whyCapture(path, at string, f format) error {
	in, err := os.Open(path)
	if err != nil {
		return usageError{fmt.Errorf("opening the capture: %w", err)}
	}
	defer in.Close()
	p, err := g.plan()
	if err != nil {
		return err
	}
	cfg, err := replayConfig(p)
	if err != nil {
		return err
	}
	if cfg.Env.Link, err = captureLink(in, p, at, addressesOf); err != nil {
		return usageError{fmt.Errorf("%s: %w", path, err)}
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading the capture again: %w", err)
	}
	steps, err := replay.Read(in, cfg)
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", path, err)}
	}
	if f == formatJSON {
		e := json.NewEncoder(g.stdio.Out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(slices.Concat([]replay.Step{}, steps))
	}
	return printSteps(g.stdio.Out, steps)
}

// captureLink is the server's address in the network of a capture, where that is not
// server.address: a client that no relay is in front of belongs to the network of the card
// that heard it. at is the flag --interface. has are the addresses of an interface of this
// machine, which may be the server.
func captureLink(in io.Reader, p plan.Plan, at string, has func(name string) []netip.Addr) (netip.Addr, error) {
	name, text, given := strings.Cut(at, "=")
	var links []netip.Prefix
	var names []string
	for _, s := range p.Boot.Subnets {
		if s.Interface == "" || s.Interface == p.Boot.Interface {
			continue
		}
		names = append(names, s.Interface)
		if at == "" || s.Interface == name {
			links = append(links, s.Prefix)
		}
	}
	switch {
	case at != "" && name == p.Boot.Interface && !given:
		return netip.Addr{}, nil
	case at != "" && len(links) == 0:
		return netip.Addr{}, fmt.Errorf("--interface %s: no boot.subnets of cluster.yaml has the interface %s; there are boot.interface %s, and %q", at, name, p.Boot.Interface, names)
	case given:
		a, err := netip.ParseAddr(text)
		if err != nil || !slices.ContainsFunc(links, func(l netip.Prefix) bool { return l.Contains(a) }) {
			return netip.Addr{}, fmt.Errorf("--interface %s: %q is not an address in %s", at, text, links[0])
		}
		return a, nil
	}
	link, err := replay.Link(in, p.Server.Address, links)
	if err != nil || link.IsValid() || at == "" {
		return link, err
	}
	for _, a := range has(name) {
		if slices.ContainsFunc(links, func(l netip.Prefix) bool { return l.Contains(a) }) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("--interface %s: the capture has no answer from there, and this machine no such interface with an address in %s; say the server's address there: --interface %s=ADDRESS", at, links[0], name)
}

// addressesOf are those of an interface of this machine, if it has that.
func addressesOf(name string) (out []netip.Addr) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	all, err := ifi.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// unstarted is the state of every machine where nobody knows it. What DHCP and TFTP
// answer does not depend on it.
type unstarted struct{}

func (unstarted) State(string) machine.State { return "" }

// replayConfig is what imagectl serve would answer by, as far as it is decided
// before anything is fetched by HTTP: no file need have been built for it.
func replayConfig(p plan.Plan) (replay.Config, error) {
	quirks, err := quirk.Load()
	if err != nil {
		return replay.Config{}, err
	}
	stand := boot.Blob{Name: "any", SHA256: strings.Repeat("0", 64), Size: 1}
	diskless := map[string]catalog.Diskless{}
	for _, m := range p.Machines {
		if m.Diskless {
			diskless[m.Name] = catalog.Diskless{}
		}
	}
	cat, err := catalog.New(catalog.Config{Plan: p, Kernel: stand, Initrd: []boot.Blob{stand}, Diskless: diskless, States: unstarted{},
		Ignition: func(string) ([]byte, error) { return []byte(`{"ignition":{"version":"3.4.0"}}`), nil }})
	if err != nil {
		return replay.Config{}, err
	}
	extras := server.Extras{GRUB: p.Boot.GRUB.ID != "", Arm64: p.Boot.IPXEArm64.ID != ""}
	programs := map[boot.Firmware]string{boot.UEFIx64: server.IPXEName(boot.UEFIx64)}
	if extras.Arm64 {
		programs[boot.UEFIarm64] = server.IPXEName(boot.UEFIarm64)
	}
	if p.Boot.SecureBoot.Certificate != nil {
		programs = map[boot.Firmware]string{boot.UEFIx64: "installer.efi", boot.UEFIarm64: "installer.efi"}
	}
	at := netip.AddrPortFrom(p.Server.Address, uint16(p.Server.HTTPPort))
	cfg := replay.Config{
		Env:  dhcp.Env{Server: p.Server.Address, Network: cat.Network(), Answer: cat.Decide, Files: server.BootFiles(at, "http://"+at.String(), programs, extras), Quirks: quirks},
		TFTP: server.TFTPNames(extras), GRUB: extras.GRUB, MTU: 1500,
	}
	if d := p.Boot.DHCP6; d.Mode == plan.DHCP6Stateful || d.Mode == plan.DHCP6Stateless {
		at := netip.AddrPortFrom(d.Address, uint16(p.Server.HTTPPort))
		cfg.Env6 = dhcp6.Env{Server: d.Address, Network: cat.Network6(), Answer: cat.Decide, Files: server.BootFiles6(at, "http://"+at.String(), programs, extras)}
	}
	return cfg, nil
}

func printSteps(w io.Writer, steps []replay.Step) error {
	var s strings.Builder
	for _, x := range steps {
		who := x.Client
		if x.Machine != "" {
			who += " (" + x.Machine + ")"
		}
		fmt.Fprintf(&s, "%s  %s\n  %s\n", x.At.UTC().Format("15:04:05.000"), who, x.Asked)
		if x.Code != replay.CodeSeen {
			fmt.Fprintf(&s, "  → %s: %s\n", x.Code, x.Reason)
		}
		if len(x.Answer) > 0 {
			fmt.Fprintf(&s, "    %s\n", strings.Join(x.Answer, ", "))
		}
		for _, q := range x.Quirks {
			fmt.Fprintf(&s, "    quirk %s: %s; %s\n      evidence: %s\n", q.Name, q.Habit, q.Answer, q.Evidence)
		}
	}
	if len(steps) == 0 {
		s.WriteString("the capture has no DHCP packet and no TFTP request\n")
	}
	_, err := io.WriteString(w, s.String())
	return err
}
