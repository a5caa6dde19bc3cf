// Command benchjoin measures how many machines a second the server enrols: many
// simulated agents, each a client of its own with its own key, TLS connection and
// certificate request, wait for one server that has its state on the disk. Every
// certificate is checked by who gets it and used for a first report; then the server
// is killed, and what its disk holds is compared with what the agents hold.
//
// In the same run the same agents ask a program that does the least that anybody
// could: check a request, sign it, put the certificate into etcd. Where the program
// cfssl is given, they ask that too. Run it with "make bench-join". A goal that is
// missed is said, and is no error, because a machine that does other work may miss
// one.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// goal is how many enrolments a second there shall be on two cores.
const goal = 300

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	role := flag.String("serve", "", "what the measurement starts: imagectl or plain")
	dir := flag.String("dir", "", "with -serve: its directory")
	profile := flag.String("cpuprofile", "", "where imagectl's server writes a CPU profile")
	b := bench{}
	flag.IntVar(&b.agents, "agents", 1000, "how many machines there are")
	flag.StringVar(&b.cfssl, "cfssl", "", "cfssl's program")
	flag.Parse()
	var err error
	switch *role {
	case "imagectl":
		err = serveOurs(ctx, *dir, b.agents, *profile)
	case "plain":
		err = servePlain(ctx, *dir)
	case "":
		b.profile = *profile
		err = b.run(ctx)
	default:
		err = fmt.Errorf("there is no server %q", *role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchjoin:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	agents         int
	cfssl, profile string
	dir            string
}

func (b *bench) run(ctx context.Context) error {
	var err error
	// Not in memory: what is durable has to cost what it costs.
	if b.dir, err = os.MkdirTemp("/var/tmp", "imagectl-benchjoin-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	fmt.Printf("%d agents; %d processors for them and the server\n", b.agents, runtime.NumCPU())
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"plain", b.plain}, {"cfssl", b.withCFSSL}, {"token", b.byToken}, {"approve", b.byApproval}} {
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("measuring %s: %w", part.name, err)
		}
	}
	return nil
}

// print shows one line of the result.
func (b *bench) print(what string, r result, s spent, verdict string) {
	fmt.Printf("%-44s %6.0f/s  from the first to the last %6.2f s, one takes %5.2f s (p50), %5.2f s (p99); server: %.2f s of processor time, %d MiB%s\n",
		what, r.rate(), r.took.Seconds(), r.at(50).Seconds(), r.at(99).Seconds(), s.cpu.Seconds(), s.peak>>20, verdict)
}

func verdict(r result) string {
	if r.rate() < goal {
		return fmt.Sprintf("; goal %d/s: MISSED", goal)
	}
	return fmt.Sprintf("; goal %d/s: met", goal)
}
