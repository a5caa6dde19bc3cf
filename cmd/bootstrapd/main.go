// Command bootstrapd is the agent on every node: it enrols the machine, installs
// it when told to, and keeps it a member of its cluster.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/guestinfo"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

// nodeAPI is where operators and servers call.
const nodeAPI = ":50500"

func main() {
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *version {
		fmt.Println(build())
		return
	}
	if flag.Arg(0) == guestinfo.Verb {
		if err := guestinfo.Print(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	err := run(ctx, log)
	stop()
	if err != nil {
		log.Error("stopping", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	// The machine is for others. A soft limit: the collector works harder instead
	// of the heap growing.
	debug.SetMemoryLimit(40 << 20)
	h := &host.Host{}
	ready := func() {
		// What the agent starts must not speak for it: true takes the address away,
		// and a second call says nothing.
		if _, err := daemon.SdNotify(true, daemon.SdNotifyReady); err != nil {
			log.Warn("telling systemd that we are ready failed", "err", err)
		}
	}
	conf, err := agent.Configure(ctx, h, log, ready)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	a := &agent.Agent{
		Host: h, Config: conf, Log: log, Version: build(),
		Now: time.Now, Rand: rand.Reader, Jitter: mathrand.Float64, Ready: ready,
	}
	if conf.Mode == nodeconf.Node {
		if a.Balancer, err = net.Listen("tcp", kubeadm.Endpoint); err != nil {
			return fmt.Errorf("listening for the API balancer: %w", err)
		}
		if a.API, err = net.Listen("tcp", nodeAPI); err != nil {
			return fmt.Errorf("listening for the node API: %w", err)
		}
	}
	log.Info("starting", "version", a.Version, "cluster", conf.Cluster, "mode", conf.Mode, "machine", conf.Machine)
	return a.Run(ctx)
}

// build is the commit, as the Go toolchain recorded it.
func build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "unknown revision"
	}
	return info.Main.Version
}
