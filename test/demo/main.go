// Command demo runs the main job for a person to watch: it builds an image from
// a cluster.yaml, powers on two empty machines and shows how they become a
// Kubernetes cluster that nobody logged in to. Run it with "make demo".
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/imagectl/imagectl/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var l lab.Lab
	flag.StringVar(&l.Bin, "bin", "bin", "directory of imagectl and bootstrapd")
	flag.StringVar(&l.Release, "release", "", "directory of the test release")
	flag.StringVar(&l.Upstream, "upstream", "", "directory of the upstream programs")
	flag.StringVar(&l.Cache, "cache", "", "imagectl's cache directory, kept from run to run; empty for a new one")
	flag.StringVar(&l.Work, "work", "/var/tmp/imagectl-demo", "directory for everything else; emptied first")
	namespace := flag.String("namespace", "", "name of the network namespace this runs in, for the commands to try")
	keep := flag.Bool("keep", term.IsTerminal(int(os.Stdin.Fd())), "leave the cluster running until Ctrl-C")
	limit := flag.Duration("limit", 40*time.Minute, "give up after this time")
	flag.Parse()
	forever := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, *limit, fmt.Errorf("no Ready cluster after %s", *limit))
	defer cancel()

	start := time.Now()
	l.Log = lab.Stamped(os.Stdout)
	for _, dir := range []*string{&l.Bin, &l.Release, &l.Upstream, &l.Work} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	if err := os.RemoveAll(l.Work); err != nil {
		return err
	}
	if err := os.MkdirAll(l.Work, 0o755); err != nil {
		return err
	}
	l.Machines = lab.Rack()
	rack, err := lab.New(ctx, l)
	if err != nil {
		return err
	}
	defer rack.Close()
	rack.Log("two empty machines (accelerator %s), consoles in %s/*.console", rack.Accel, rack.Work)
	if err := rack.Prepare(ctx); err != nil {
		return err
	}
	if err := rack.Serve(ctx); err != nil {
		return err
	}
	rack.Log("imagectl serve is ready")
	if err := rack.Form(ctx); err != nil {
		return err
	}
	if err := rack.RunProbe(ctx, "w1"); err != nil {
		return err
	}
	nodes, err := rack.Kubectl(ctx, "get", "nodes,pods", "--all-namespaces", "-o", "wide")
	if err != nil {
		return err
	}
	fmt.Printf("\n%s\nFrom power-on to here it took %s, with lock and build before it %s; nobody logged in anywhere.\n",
		nodes, time.Since(rack.Powered).Round(time.Second), time.Since(start).Round(time.Second))
	return farewell(forever, rack, *namespace, *keep)
}

// farewell names the next commands and, for a person, waits while they try them.
func farewell(ctx context.Context, rack *lab.Lab, namespace string, keep bool) error {
	script := filepath.Join(rack.Work, "imagectl")
	text := fmt.Sprintf("#!/bin/sh\nexec ip netns exec %s env IMAGECTL_CONFIG=%s %s/imagectl -f %s/cluster.yaml \"$@\"\n",
		namespace, filepath.Join(rack.Work, "context.json"), rack.Bin, rack.Site)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		return err
	}
	fmt.Printf("\nCommands to try%s:\n", map[bool]string{true: " in another terminal, as root", false: " with make demo in a terminal, where the cluster keeps running"}[keep])
	for _, c := range []string{"status", "machines ls", "why cp1", "logs w1 --unit bootstrapd.service", "kubeconfig --out /tmp/kubeconfig"} {
		fmt.Printf("  %s %s\n", script, c)
	}
	fmt.Printf("  ip netns exec %s %s/kubectl --kubeconfig %s get nodes -o wide\n", namespace, rack.Work, rack.Kubeconfig())
	if !keep {
		return nil
	}
	fmt.Println("\nCtrl-C pulls the plugs.")
	<-ctx.Done()
	return nil
}
