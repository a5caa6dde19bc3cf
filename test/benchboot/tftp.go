package main

import (
	"context"
	"fmt"
	"time"
)

const (
	tftpClients = 100
	blockSize   = 1468
)

func (b *bench) tftp(ctx context.Context) error {
	type peer struct {
		name  string
		argv  []string
		one   []float64
		many  []float64
		start func() (*daemon, error)
	}
	peers := []*peer{
		{name: "ours", start: func() (*daemon, error) { return b.ours(ctx, 10) }},
		{name: "dnsmasq", argv: []string{"dnsmasq", "--keep-in-foreground", "--port=0", "--enable-tftp", "--tftp-root=" + b.dir,
			"--tftp-max=200", "--user=root", "--interface=rack", "--conf-file=/dev/null", "--pid-file="}},
		{name: "atftpd", argv: []string{"atftpd", "--daemon", "--no-fork", "--maxthread", "200", "--user", "root", "--group", "root", "--bind-address", serverAddress, b.dir}},
	}
	var have []*peer
	for _, p := range peers {
		if p.argv != nil {
			if err := missing(p.argv[0]); err != nil {
				b.skip("TFTP", p.name, err)
				continue
			}
			p.start = func() (*daemon, error) { return b.space.start(ctx, b.space.bound(ctx, 69), p.argv...) }
		}
		have = append(have, p)
	}
	r, err := newRack(ctx, b.space, firstReserved, tftpClients)
	if err != nil {
		return err
	}
	defer r.close()
	for range shortRounds * b.runs {
		for _, p := range have {
			d, err := p.start()
			if err != nil {
				return err
			}
			one, many, err := b.tftpRun(ctx, p.name, d, r)
			d.stop()
			if err != nil {
				return fmt.Errorf("TFTP from %s: %w\n%s", p.name, err, d.said.Bytes())
			}
			p.one, p.many = append(p.one, one), append(p.many, many)
		}
	}
	for _, p := range have[1:] {
		b.row("TFTP, one client", p.name, have[0].one, p.one, "MB/s", 0.95)
		b.row(fmt.Sprintf("TFTP, %d clients", tftpClients), p.name, have[0].many, p.many, "MB/s", 1.2)
	}
	return nil
}

// tftpRun measures MB/s of a server, of one client and of many together.
func (b *bench) tftpRun(ctx context.Context, name string, d *daemon, r *rack) (one, many float64, err error) {
	spent, begin := d.spent(), time.Now()
	n, err := r.load(ctx, nbpFile, 1)
	if err != nil {
		return 0, 0, err
	}
	one = float64(n) / 1e6 / time.Since(begin).Seconds()
	b.say("%s: one client %.1f MB/s, %.1f µs a block, %.1f µs of the server", name, one, perBlock(time.Since(begin), n), perBlock(d.spent()-spent, n))
	spent, begin = d.spent(), time.Now()
	if n, err = r.load(ctx, manyFile, tftpClients); err != nil {
		return 0, 0, err
	}
	took := time.Since(begin)
	many = float64(n) / 1e6 / took.Seconds()
	b.say("%s: %d clients %.1f MB/s, %.1f µs of the server a block", name, tftpClients, many, perBlock(d.spent()-spent, n))
	return one, many, nil
}

// perBlock is in millionths of a second.
func perBlock(t time.Duration, bytes int) float64 {
	return float64(t.Nanoseconds()) / 1e3 / (float64(bytes) / blockSize)
}
