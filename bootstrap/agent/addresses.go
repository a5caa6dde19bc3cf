package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/platform"
)

const (
	// addressed says that this machine's platform spoke of its network at its first start, and
	// holds the host name that it gave. Machines that were installed never get it, so that nobody
	// gives one of them other addresses by plugging a stick in.
	addressed    = "/etc/imagectl/addressed"
	hostnamePath = "/etc/hostname"
)

// addresses gives the machine the addresses and the name that its platform has for it. They
// lie in /etc: from the second start on the machine has them before this program runs, and
// also without the platform's medium, whose last word stays.
type addresses struct {
	host *host.Host
	log  *slog.Logger
	// done is what networkd has read since this process began; said what was complained of.
	done, said string
}

// again is for a machine that knows its server: it looks only if it was addressed before.
func (a *addresses) again(ctx context.Context) {
	switch told, err := a.host.Exists(addressed); {
	case err != nil:
		a.complain(err)
	case told:
		a.look(ctx)
	}
}

// look does what the platform says; it is idempotent. What is wrong does not stop the agent:
// the machine may have another way to its server.
func (a *addresses) look(ctx context.Context) {
	n, wrong := platform.Addresses(ctx, a.host)
	if errors.Is(wrong, fs.ErrNotExist) {
		return
	}
	var gone []string
	err := a.name(n.Hostname)
	if err == nil && wrong == nil {
		gone, err = a.gone(n)
	}
	if err == nil {
		err = a.apply(ctx, n, gone)
	}
	if err := errors.Join(wrong, err); err != nil {
		a.complain(err)
	}
}

func (a *addresses) complain(err error) {
	if a.said == err.Error() {
		return
	}
	a.said = err.Error()
	a.log.Warn("the platform's addresses are not all of use", "err", err)
	a.host.Print("imagectl: the platform's addresses are not all of use: " + a.said)
}

// gone lists files of cards that the platform does not speak of any more.
func (a *addresses) gone(n platform.Network) ([]string, error) {
	have, err := a.host.Glob(platform.FilePrefix + "*")
	if err != nil {
		return nil, err
	}
	for _, f := range n.Files() {
		have = slices.DeleteFunc(have, func(p string) bool { return p == f.Path })
	}
	return have, nil
}

// apply makes networkd do what the platform says, without the files that are gone.
func (a *addresses) apply(ctx context.Context, n platform.Network, gone []string) error {
	files := n.Files()
	var all strings.Builder
	for _, f := range files {
		fmt.Fprintf(&all, "%s\n%s\n", f.Path, f.Content)
	}
	if len(gone) == 0 && a.done == all.String() {
		return nil
	}
	for _, f := range files {
		if err := a.put(f.Path, f.Content); err != nil {
			return err
		}
	}
	for _, p := range gone {
		if err := a.host.Remove(p); err != nil {
			return err
		}
	}
	// Also when no file has changed: a predecessor may have died in between. networkd leaves
	// cards alone whose files are as before.
	if _, err := a.host.Run(ctx, host.Command{Argv: []string{"networkctl", "reload"}}); err != nil {
		return err
	}
	a.done = all.String()
	for _, c := range n.Cards {
		a.log.Info("the platform has addresses for a network card", "from", n.From, "card", c.Name, "mac", c.MAC, "addresses", c.Addresses, "ipv4", c.Four, "ipv6", c.Six)
	}
	return nil
}

// name gives the machine a host name until the server says how it is called. One that is
// there already stays, unless it is the platform's former one.
func (a *addresses) name(want string) error {
	former, err := a.read(addressed)
	if err != nil {
		return err
	}
	have, err := a.read(hostnamePath)
	if err != nil {
		return err
	}
	named, err := a.host.Exists(RunPath)
	if err != nil {
		return err
	}
	ours := have == "" || have == former || have == want // as a death before the last line leaves it
	if want == "" || named || !ours {
		return a.put(addressed, []byte(former+"\n"))
	}
	if err := a.put(hostnamePath, []byte(want+"\n")); err != nil {
		return err
	}
	now, err := a.read("/proc/sys/kernel/hostname")
	if err != nil {
		return err
	}
	if now != want {
		if err := a.host.SetHostname(want); err != nil {
			return err
		}
		a.log.Info("the platform has a name for this machine", "hostname", want)
	}
	return a.put(addressed, []byte(want+"\n"))
}

// read is a file without the blanks around; empty when there is none.
func (a *addresses) read(name string) (string, error) {
	b, err := a.host.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// put writes a file that differs.
func (a *addresses) put(name string, content []byte) error {
	if have, err := a.host.ReadFile(name); err == nil && bytes.Equal(have, content) {
		return nil
	}
	return a.host.WriteFile(name, content, 0o644)
}
