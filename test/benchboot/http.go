package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const nginxConfig = `daemon off; worker_processes auto; pid %[1]s/nginx.pid; error_log stderr error; user root;
events { worker_connections 1024; }
http { access_log off; sendfile on; tcp_nopush on; client_body_temp_path %[1]s/n1; proxy_temp_path %[1]s/n2; fastcgi_temp_path %[1]s/n3; uwsgi_temp_path %[1]s/n4; scgi_temp_path %[1]s/n5;
  server { listen %[2]s:8081; root %[1]s; } }
`

func (b *bench) http(ctx context.Context) error {
	if err := missing("nginx"); err != nil {
		b.skip("HTTP, one large file", "nginx", err)
		return nil
	}
	config := filepath.Join(b.dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, b.dir, serverAddress), 0o644); err != nil {
		return err
	}
	sum, _, err := digest(filepath.Join(b.dir, largeFile))
	if err != nil {
		return err
	}
	nginx, err := b.space.start(ctx, listens(serverAddress+":8081"), "nginx", "-c", config)
	if err != nil {
		b.skip("HTTP, one large file", "nginx", err)
		return nil
	}
	defer nginx.stop()
	d, err := b.ours(ctx, 10)
	if err != nil {
		return err
	}
	defer d.stop()
	var ours, theirs []float64
	for range 2*b.runs + 1 {
		for _, side := range []struct {
			url string
			to  *[]float64
		}{{"http://" + serverAddress + ":8080/files/" + sum + "/" + largeFile, &ours}, {"http://" + serverAddress + ":8081/" + largeFile, &theirs}} {
			rate, err := download(ctx, side.url)
			if err != nil {
				return err
			}
			*side.to = append(*side.to, rate)
		}
	}
	b.row("HTTP, one large file", "nginx, sendfile", median(ours), median(theirs), "MB/s", 0.95)
	return nil
}

func download(ctx context.Context, url string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	buf := make([]byte, 1<<20)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
	if err != nil || n != largeSize {
		return 0, fmt.Errorf("getting %s: %s, %d bytes: %v", url, resp.Status, n, err)
	}
	return float64(n) / 1e6 / time.Since(begin).Seconds(), nil
}

// requests measures scripts and Ignition configs per second.
func (b *bench) requests(ctx context.Context) error {
	const at = serverAddress + ":8080"
	type pair struct{ script, ignition float64 }
	measured := map[int]pair{}
	for _, n := range []int{10, 1000, 100000} {
		d, err := b.ours(ctx, n)
		if err != nil {
			return err
		}
		var p pair
		if p.script, err = b.load(ctx, d, at, n, "/boot.ipxe?mac=%s&uuid=&serial=&platform=efi"); err == nil {
			p.ignition, err = b.load(ctx, d, at, n, "/ignition?mac=%s")
		}
		d.stop()
		if err != nil {
			return err
		}
		measured[n] = p
	}
	b.row("scripts, 100,000 machines", "ours with 10", measured[100000].script, measured[10].script, "/s", 0.8)
	b.row("Ignition, 100,000 machines", "ours with 10", measured[100000].ignition, measured[10].ignition, "/s", 0.8)
	if b.matchbox == "" {
		b.skip("scripts and Ignition", "matchbox", fmt.Errorf("%w: say with -matchbox where it is", errNotCompared))
		return nil
	}
	data := filepath.Join(b.dir, "matchbox")
	if err := matchboxData(data, 1000); err != nil {
		return err
	}
	d, err := b.space.start(ctx, listens(at), b.matchbox, "-address", at, "-data-path", data, "-assets-path", data, "-log-level", "error")
	if err != nil {
		b.skip("scripts and Ignition", "matchbox", err)
		return nil
	}
	defer d.stop()
	script, err := b.load(ctx, d, at, 1000, "/ipxe?mac=%s")
	if err != nil {
		return err
	}
	config, err := b.load(ctx, d, at, 1000, "/ignition?mac=%s")
	if err != nil {
		return err
	}
	b.row("scripts, 1,000 machines", "matchbox", measured[1000].script, script, "/s", 100)
	b.row("Ignition, 1,000 machines", "matchbox", measured[1000].ignition, config, "/s", 100)
	b.row("scripts, 100,000 machines", "matchbox with 1,000", measured[100000].script, script, "/s", 100)
	b.row("Ignition, 100,000 machines", "matchbox with 1,000", measured[100000].ignition, config, "/s", 100)
	return nil
}

// matchboxData is one group a machine, as its users have it.
func matchboxData(dir string, machines int) error {
	write := func(kind, name string, content any) error {
		path := filepath.Join(dir, kind, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		text, err := json.Marshal(content)
		if err != nil {
			return err
		}
		return os.WriteFile(path, text, 0o644)
	}
	if err := write("ignition", "install.ign", json.RawMessage(ignition)); err != nil {
		return err
	}
	if err := write("profiles", "install.json", map[string]any{"id": "install", "name": "install", "ignition_id": "install.ign",
		"boot": map[string]any{"kernel": "/assets/vmlinuz", "initrd": []string{"/assets/initrd"}, "args": []string{"initrd=initrd", "flatcar.first_boot=1"}}}); err != nil {
		return err
	}
	for i := range machines {
		id := fmt.Sprintf("m%d", i)
		if err := write("groups", id+".json", map[string]any{"id": id, "name": id, "profile": "install", "selector": map[string]string{"mac": card(i).String()}}); err != nil {
			return err
		}
	}
	return nil
}

const (
	loaders  = 8
	loadTime = 3 * time.Second
)

// load asks for the machines' answers in turn, over kept connections.
func (b *bench) load(ctx context.Context, d *daemon, at string, machines int, path string) (float64, error) {
	var done atomic.Int64
	var all sync.WaitGroup
	errs := make([]error, loaders)
	spent, begin := d.spent(), time.Now()
	for i := range loaders {
		all.Go(func() {
			errs[i] = func() error {
				conn, err := net.Dial("tcp4", at)
				if err != nil {
					return err
				}
				defer conn.Close()
				in := bufio.NewReader(conn)
				for n := i; time.Since(begin) < loadTime && ctx.Err() == nil; n += loaders {
					if _, err := fmt.Fprintf(conn, "GET "+path+" HTTP/1.1\r\nHost: "+at+"\r\n\r\n", card(n%machines)); err != nil {
						return err
					}
					resp, err := http.ReadResponse(in, nil)
					if err != nil {
						return err
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						return err
					}
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						return fmt.Errorf("getting "+path+": %s", card(n%machines), resp.Status)
					}
					done.Add(1)
				}
				return nil
			}()
		})
	}
	all.Wait()
	took := time.Since(begin)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	rate := float64(done.Load()) / took.Seconds()
	b.say("%d machines, %s: %.0f/s, %.1f µs of the server each", machines, path[:strings.IndexByte(path, '?')], rate, (d.spent()-spent).Seconds()*1e6/float64(done.Load()))
	return rate, ctx.Err()
}
