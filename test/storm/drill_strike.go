package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// strike kills a server when a third of the machines are installed. With leading it is
// the one that coordinates, and etcd's leader dies with it; else it is the other one, and
// a member of etcd that follows dies when half of them are installed.
func (d *drill) strike(ctx context.Context, begin time.Time, leading bool) error {
	listed := int64(len(d.machines) - len(d.machines)/4)
	if err := d.await(ctx, listed/3); err != nil {
		return err
	}
	server, err := d.coordinator(ctx)
	if err != nil {
		return err
	}
	member, err := d.leader(ctx)
	if err != nil {
		return err
	}
	what := "which coordinates"
	if !leading {
		server, member, what = (server+1)%len(d.serve), (member+1)%members, "which does not coordinate"
	}
	if err := d.serve[server].kill(); err != nil {
		return err
	}
	fmt.Printf("%6.1f s: %s is killed, %s; %d machines are installed, %d have started their kernel\n",
		time.Since(begin).Seconds(), d.urls[server], what, d.installed.Load(), d.kernels.Load())
	what = "which leads"
	if !leading {
		what = "which follows"
		if err := d.await(ctx, listed/2); err != nil {
			return err
		}
	}
	if err := d.etcd[member].kill(); err != nil {
		return err
	}
	fmt.Printf("%6.1f s: a member of etcd is killed, %s; %d machines are installed\n", time.Since(begin).Seconds(), what, d.installed.Load())
	return nil
}

// await waits until so many machines are installed.
func (d *drill) await(ctx context.Context, installed int64) error {
	for d.installed.Load() < installed {
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// coordinator is the index of the server that says of itself that it coordinates.
func (d *drill) coordinator(ctx context.Context) (int, error) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: d.dialer().DialContext,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: d.roots}}}
	defer client.CloseIdleConnections()
	for {
		for i, url := range d.urls {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/coordinates", nil)
			if err != nil {
				return 0, err
			}
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return i, nil
			}
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// leader is the index of etcd's leader.
func (d *drill) leader(ctx context.Context) (int, error) {
	client, err := d.etcdClient(d.client(0))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	for i := range members {
		s, err := client.Status(ctx, d.client(i))
		if err != nil {
			return 0, err
		}
		if s.Leader == s.Header.MemberId {
			return i, nil
		}
	}
	return 0, errors.New("no member of etcd leads")
}

// etcdClient calls members of etcd; the caller closes it.
func (d *drill) etcdClient(endpoints ...string) (*clientv3.Client, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(d.dir, "etcd.pem"), filepath.Join(d.dir, "etcd.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(d.dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 20 * time.Second,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair}}})
}

// survivor is a server that was not killed.
func (d *drill) survivor() *process {
	return d.serve[slices.IndexFunc(d.serve, func(p *process) bool { return !p.dead })]
}
