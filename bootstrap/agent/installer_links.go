package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

const (
	// linkPatience is how long an installer waits for the server on one way: cards that
	// learn their speed, a switch that looks for loops (IEEE 802.1D: 30 s) and LACP at the
	// slow rate (30 s and more) together.
	linkPatience = 2 * time.Minute
	// linkLook is between two attempts.
	linkLook = time.Second
	// stepLinks is the installer's word on the links of cluster.yaml.
	stepLinks = "links"
)

// linkTrial is how far an installer is with finding out whether its machine's declared links
// reach the server: it is on them, or on what it has by itself (DHCP on every card).
type linkTrial struct {
	declared bool
	// seen: the server was reached without them, so it is not the server that is away.
	seen bool
}

// linkVerdict is what an installer does next.
type linkVerdict int

const (
	linkStay linkVerdict = iota
	// linkKeep: the declared links reach the server.
	linkKeep
	// linkTurn: try the other way.
	linkTurn
	// linkGiveUp: the server can be reached, and not by the declared links.
	linkGiveUp
)

// next decides. elapsed is how long this way has been tried. Failing on the declared links
// proves nothing while nobody knows that the server is up; so they are tried again once it was
// reached without them.
func (t linkTrial) next(elapsed, patience time.Duration, reached bool) (linkTrial, linkVerdict) {
	switch {
	case t.declared && reached:
		return t, linkKeep
	case !t.declared && reached:
		return linkTrial{declared: true, seen: true}, linkTurn
	case elapsed < patience:
		return t, linkStay
	case t.declared && t.seen:
		return t, linkGiveUp
	}
	return linkTrial{declared: !t.declared, seen: t.seen}, linkTurn
}

// declaredLinks makes the links that cluster.yaml gives this machine, and keeps them when the
// server is reached by them. Otherwise the machine goes back to what it has by itself, and the
// returned sentence says why: a system with these links would be cut off.
func (a *Agent) declaredLinks(ctx context.Context) (problem string, err error) {
	m, err := a.linksOfThis()
	if err != nil || len(m.Files) == 0 {
		return "", err
	}
	a.say("trying the links that cluster.yaml gives " + m.Machine)
	t := linkTrial{declared: true}
	since := a.Now()
	if err := a.makeLinks(ctx, m); err != nil {
		return "", err
	}
	for {
		reached := a.reachedBy(ctx, m, t.declared)
		next, verdict := t.next(a.Now().Sub(since), a.linkPatience, reached)
		if verdict == linkGiveUp || verdict == linkTurn && !next.declared {
			problem = fmt.Sprintf("the links that cluster.yaml gives %s do not reach the server within %s: %s", m.Machine, a.linkPatience, a.linksNow(m))
		}
		switch verdict {
		case linkKeep:
			a.say("the links that cluster.yaml gives " + m.Machine + " reach the server")
			return "", nil
		case linkGiveUp, linkTurn:
			since = a.Now()
			if verdict == linkTurn && next.declared {
				err = a.makeLinks(ctx, m)
			} else {
				a.say(problem)
				err = a.unmakeLinks(ctx, m)
			}
			if err != nil {
				return problem, err
			}
			if verdict == linkGiveUp {
				return problem, nil
			}
		}
		t = next
		if err := pause(ctx, linkLook); err != nil {
			return problem, nil
		}
	}
}

func (a *Agent) say(line string) {
	a.Log.Info(line)
	a.Host.Print("imagectl: " + line)
}

// linksOfThis finds this machine among those with links; the zero value for none.
func (a *Agent) linksOfThis() (nodeconf.MachineLinks, error) {
	b, err := a.Host.ReadFile(nodeconf.LinksPath)
	if notExist(err) {
		return nodeconf.MachineLinks{}, nil
	} else if err != nil {
		return nodeconf.MachineLinks{}, err
	}
	all, err := nodeconf.ParseLinks(b)
	if err != nil {
		return nodeconf.MachineLinks{}, err
	}
	var listed []enrol.Hardware
	for _, m := range all.Machines {
		listed = append(listed, enrol.Hardware{Name: m.Machine, MACs: m.MACs, UUID: m.UUID, Serial: m.Serial})
	}
	f := a.Host.Facts()
	seen := enrol.Hardware{UUID: f.UUID, Serial: f.Serial}
	for _, i := range f.Interfaces {
		seen.MACs = append(seen.MACs, i.MAC)
	}
	name, refusal := enrol.NewIndex(listed).Match(seen)
	if refusal != nil {
		return nodeconf.MachineLinks{}, fmt.Errorf("finding this machine's links: %s", refusal.Reason)
	}
	if i := slices.IndexFunc(all.Machines, func(m nodeconf.MachineLinks) bool { return m.Machine == name }); name != "" && i >= 0 {
		return all.Machines[i], nil
	}
	return nodeconf.MachineLinks{}, nil
}

func (a *Agent) makeLinks(ctx context.Context, m nodeconf.MachineLinks) error {
	for _, f := range m.Files {
		if err := a.Host.WriteFile(f.Path, []byte(f.Content), 0o644); err != nil {
			return err
		}
	}
	return a.reloadLinks(ctx)
}

// unmakeLinks also deletes what networkd has made: it does not by itself (networkctl(1),
// reload).
func (a *Agent) unmakeLinks(ctx context.Context, m nodeconf.MachineLinks) error {
	for _, f := range m.Files {
		if err := a.Host.Remove(f.Path); err != nil {
			return err
		}
	}
	for _, name := range slices.Backward(m.Made) { // VLANs before what they stand on
		if there, err := a.Host.Exists("/sys/class/net/" + name); err != nil {
			return err
		} else if !there {
			continue
		}
		if _, err := a.Host.Run(ctx, host.Command{Argv: []string{"networkctl", "delete", name}}); err != nil {
			return err
		}
	}
	return a.reloadLinks(ctx)
}

// reloadLinks has networkd read its files. It may not run yet.
func (a *Agent) reloadLinks(ctx context.Context) error {
	var back backoff
	for try := 1; ; try++ {
		_, err := a.Host.Run(ctx, host.Command{Argv: []string{"networkctl", "reload"}})
		if err == nil || try == 10 || ctx.Err() != nil {
			return err
		}
		a.rest(ctx, &back)
	}
}

// reachedBy says whether the server was reached. On the declared links the way there must be
// one of theirs: an address that a card has from before, until networkd takes it, proves
// nothing.
func (a *Agent) reachedBy(ctx context.Context, m nodeconf.MachineLinks, declared bool) bool {
	own, err := a.servers.reached(ctx)
	if err != nil {
		a.Log.Debug("the server is not reached", "declared", declared, "err", err)
		return false
	}
	return !declared || declaredAddress(m, own, a.links())
}

// link is one of the kernel's, with its addresses.
type link struct {
	name, mac string
	addresses []netip.Addr
}

// links are what the kernel has now.
func (a *Agent) links() []link {
	var out []link
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range all {
		l := link{name: i.Name, mac: i.HardwareAddr.String()}
		// In a bond every card has the bond's.
		if own := a.sysLine(i.Name + "/bonding_slave/perm_hwaddr"); own != "" {
			l.mac = own
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, at := range addrs {
			if p, err := netip.ParsePrefix(at.String()); err == nil {
				l.addresses = append(l.addresses, p.Addr().Unmap())
			}
		}
		out = append(out, l)
	}
	return out
}

// sysLine is a file of a link in /sys; empty when there is none.
func (a *Agent) sysLine(name string) string {
	b, err := a.Host.ReadFile("/sys/class/net/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// declaredAddress says whether the declared links leave this address where it is.
func declaredAddress(m nodeconf.MachineLinks, own netip.Addr, links []link) bool {
	for _, l := range links {
		if !slices.Contains(l.addresses, own) {
			continue
		}
		for _, called := range []string{l.name, l.mac} {
			// A bond has the MAC address of a card and is not that card.
			if called == l.mac && slices.Contains(m.Made, l.name) {
				continue
			}
			if only, ok := m.Own[called]; ok && !slices.Contains(only, own) {
				return false
			}
		}
	}
	return true
}

// linksNow says what a person at the switch has to know.
func (a *Agent) linksNow(m nodeconf.MachineLinks) string {
	var said []string
	for _, name := range m.Made {
		switch state := a.sysLine(name + "/operstate"); {
		case state == "":
			said = append(said, name+" was not made")
		case state != "up":
			said = append(said, name+" is "+state)
		case strings.HasPrefix(a.sysLine(name+"/bonding/mode"), "802.3ad") && a.sysLine(name+"/bonding/ad_partner_mac") == "00:00:00:00:00:00":
			said = append(said, name+" is up, but no switch answers LACP on it")
		default:
			said = append(said, name+" is up")
		}
	}
	for _, l := range a.links() {
		if l.name == "lo" || slices.Contains(m.Made, l.name) {
			continue
		}
		cable := "has a link"
		if a.sysLine(l.name+"/carrier") != "1" {
			cable = "has no link"
		}
		said = append(said, l.name+" "+cable)
	}
	return strings.Join(said, ", ")
}

// linksStep is what the server is told of them.
func linksStep(problem string) []*api.StepStatus {
	if problem == "" {
		return nil
	}
	return []*api.StepStatus{step(stepLinks, api.StepStatus_STATE_FAILED, problem)}
}
