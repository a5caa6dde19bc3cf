// Command benchboot compares the boot server with what people use otherwise, in
// one run on one veth pair: DHCP with Kea, TFTP with dnsmasq and atftpd, HTTP with
// nginx, scripts and Ignition with matchbox. It prints ratios, since only they mean
// anything elsewhere, and each goal. A goal that is missed is said; it is no error,
// because a machine that does other work may miss one. Run it with "make
// bench-boot": it needs root and a network namespace of its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	job := flag.String("serve", "", "be our server, with the files in this directory")
	machines := flag.Int("machines", 10, "with -serve: how many machines it knows")
	only := flag.String("only", "dhcp,tftp,http,requests", "what is measured")
	b := bench{}
	flag.StringVar(&b.matchbox, "matchbox", "", "matchbox's program")
	flag.IntVar(&b.runs, "runs", 5, "how often each side is measured, by TFTP and HTTP five times as often; the median counts")
	flag.BoolVar(&b.verbose, "v", false, "print every measurement")
	flag.Parse()
	var err error
	if b.runs < 1 {
		fmt.Fprintf(os.Stderr, "benchboot: -runs %d: measure at least once\n", b.runs)
		os.Exit(2)
	}
	if *job != "" {
		err = serveOurs(ctx, *job, *machines)
	} else {
		err = b.run(ctx, strings.Split(*only, ","))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchboot:", err)
		os.Exit(1)
	}
}

// shortRounds is how many times as many rounds are of what takes a second.
const shortRounds = 5

// bench is one run.
type bench struct {
	self, dir, matchbox string
	space               *space
	// runs are rounds; of TFTP and HTTP, which take a second, five times as many, since
	// single ones of those differ by half and a median of five tells nothing.
	runs    int
	verbose bool
	missed  []string
}

func (b *bench) run(ctx context.Context, only []string) error {
	var err error
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("/var/tmp", "imagectl-benchboot-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	files := map[string]int{largeFile: largeSize, nbpFile: nbpSize, manyFile: manySize}
	if !slices.Contains(only, "http") {
		files[largeFile] = manySize // nobody fetches it
	}
	for name, size := range files {
		if err := makeFile(filepath.Join(b.dir, name), size); err != nil {
			return err
		}
	}
	if b.space, err = newSpace(ctx); err != nil {
		return err
	}
	defer b.space.close()
	printMachine()
	fmt.Printf("the median of %d rounds, for TFTP and HTTP of %d, of all sides in turn (the least to the most)\n", b.runs, shortRounds*b.runs)
	fmt.Printf(rowFormat, "", "against", "ours", "theirs", "ratio", "goal", "")
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"dhcp", b.dhcp}, {"tftp", b.tftp}, {"http", b.http}, {"requests", b.requests}} {
		if slices.Contains(only, part.name) {
			// What a server has to read is what this part gives it.
			if err := preload(filepath.Join(b.dir, "leases"), 0); err != nil {
				return err
			}
			if err := part.run(ctx); err != nil {
				return fmt.Errorf("measuring %s: %w", part.name, err)
			}
		}
	}
	if len(b.missed) == 0 {
		fmt.Println("all goals met")
		return nil
	}
	fmt.Printf("goals missed: %d\n  %s\n", len(b.missed), strings.Join(b.missed, "\n  "))
	return nil
}

// ours starts our server.
func (b *bench) ours(ctx context.Context, machines int) (*daemon, error) {
	return b.space.start(ctx, listens(httpAddress), b.self, "-serve", b.dir, "-machines", strconv.Itoa(machines))
}

// row prints what the rounds of both sides say.
func (b *bench) row(what, against string, ours, theirs []float64, unit string, goal float64) {
	r := ratio(ours, theirs)
	said := verdict(r, goal)
	if said != "met" {
		b.missed = append(b.missed, fmt.Sprintf("%s against %s: %s, want %.2f", strings.TrimSpace(what), against, r.text("%.2f"), goal))
	}
	fmt.Printf(rowFormat, what, against, spreadOf(ours).text("%.0f")+" "+unit, spreadOf(theirs).text("%.0f")+" "+unit, r.text("%.2f"), fmt.Sprintf("%.2f", goal), said)
}

const rowFormat = "%-26s %-20s %30s %30s %22s %6s %s\n"

// say prints a single measurement, if that is wanted.
func (b *bench) say(format string, args ...any) {
	if b.verbose {
		fmt.Printf("  "+format+"\n", args...)
	}
}

func (b *bench) skip(what, against string, why error) {
	fmt.Printf("%-26s %-20s %v\n", what, against, why)
}
