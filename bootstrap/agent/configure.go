package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/platform"
)

// lookAgain is how soon a machine that does not know its server looks again: the
// kernel may not have found a CD drive yet.
const lookAgain = 2 * time.Second

// Configure returns node.json, or what the platform of a virtual machine says
// when there is none, which it keeps: of its server a platform speaks once in a
// machine's life, as Ignition does. It waits until there is something, and says on the
// console what it looked for; waiting is called once before that and may be nil.
//
// Where the platform has addresses for the machine it gets them before that, and at each
// start again.
func Configure(ctx context.Context, h *host.Host, log *slog.Logger, waiting func()) (nodeconf.Config, error) {
	network := &addresses{host: h, log: log}
	b, err := h.ReadFile(nodeconf.Path)
	if err == nil {
		conf, err := nodeconf.Parse(b)
		if err != nil {
			return nodeconf.Config{}, fmt.Errorf("reading %s: %w", nodeconf.Path, err)
		}
		network.again(ctx)
		return conf, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nodeconf.Config{}, err
	}
	// The kernel loads it by itself where firmware tells of the device by ACPI.
	if _, err := h.Run(ctx, host.Command{Argv: []string{"modprobe", "--quiet", "qemu_fw_cfg"}}); err != nil {
		log.Debug("loading qemu_fw_cfg failed", "err", err)
	}
	web := platform.Client()
	for said := ""; ; {
		network.look(ctx) // first: a metadata service may need it
		conf, from, err := platform.Find(ctx, h, web)
		if err == nil {
			log.Info("the platform says which server this machine belongs to", "from", from, "cluster", conf.Cluster, "servers", conf.Servers)
			return conf, keep(h, conf)
		}
		if said == "" && waiting != nil {
			waiting()
		}
		if said != err.Error() {
			said = err.Error()
			log.Warn("this machine does not know its server", "file", nodeconf.Path, "err", err)
			h.Print("imagectl: this machine does not know its server: there is no " + nodeconf.Path + ", and " + said)
		}
		if err := pause(ctx, lookAgain); err != nil {
			return nodeconf.Config{}, err
		}
	}
}

func keep(h *host.Host, conf nodeconf.Config) error {
	b, err := conf.Encode()
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if conf.Token != "" {
		mode = 0o600
	}
	return h.WriteFile(nodeconf.Path, b, mode)
}
