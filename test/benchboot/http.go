package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
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
	for range shortRounds * b.runs {
		for _, side := range []struct {
			url string
			to  *[]float64
		}{{"http://" + httpAddress + "/files/" + sum + "/" + largeFile, &ours}, {"http://" + serverAddress + ":8081/" + largeFile, &theirs}} {
			rate, err := download(ctx, side.url)
			if err != nil {
				return err
			}
			*side.to = append(*side.to, rate)
		}
	}
	b.row("HTTP, one large file", "nginx, sendfile", ours, theirs, "MB/s", 0.95)
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

// asked is a server that scripts and Ignition configs are asked of, and what it gave in a
// second, a figure a round.
type asked struct {
	machines         int
	said             string // the same number, for people
	path             string
	start            func() (*daemon, error)
	script, ignition []float64
}

// requests measures scripts and Ignition configs per second.
func (b *bench) requests(ctx context.Context) error {
	ours := func(machines int, said string) *asked {
		return &asked{machines: machines, said: said, path: "/boot.ipxe?mac=%s&uuid=&serial=&platform=efi",
			start: func() (*daemon, error) { return b.ours(ctx, machines) }}
	}
	few, most := ours(10, "10"), ours(100000, "100,000")
	more := []*asked{ours(1000, "1,000"), ours(10000, "10,000"), most}
	if err := b.ask(ctx, append([]*asked{few}, more...)...); err != nil {
		return err
	}
	b.row("scripts, 100,000 machines", "ours with 10", most.script, few.script, "/s", 0.8)
	b.row("Ignition, 100,000 machines", "ours with 10", most.ignition, few.ignition, "/s", 0.8)
	// Flat is not only the end: 1,000 and 10,000 count as well.
	slow := worst(few, more, (*asked).scripts)
	b.row("scripts, worst at "+slow.said, "ours with 10", slow.script, few.script, "/s", 0.8)
	slow = worst(few, more, (*asked).configs)
	b.row("Ignition, worst at "+slow.said, "ours with 10", slow.ignition, few.ignition, "/s", 0.8)
	if b.matchbox == "" {
		b.skip("scripts and Ignition", "matchbox", fmt.Errorf("%w: say with -matchbox where it is", errNotCompared))
		return nil
	}
	data := filepath.Join(b.dir, "matchbox")
	some := ours(1000, "1,000")
	if err := matchboxData(data, some.machines); err != nil {
		return err
	}
	theirs := &asked{machines: some.machines, path: "/ipxe?mac=%s", start: func() (*daemon, error) {
		return b.space.start(ctx, listens(httpAddress), b.matchbox, "-address", httpAddress, "-data-path", data, "-assets-path", data, "-log-level", "error")
	}}
	if err := b.ask(ctx, some, theirs); err != nil {
		return err
	}
	b.row("scripts, 1,000 machines", "matchbox", some.script, theirs.script, "/s", 100)
	b.row("Ignition, 1,000 machines", "matchbox", some.ignition, theirs.ignition, "/s", 100)
	b.row("scripts, 100,000 machines", "matchbox with 1,000", most.script, theirs.script, "/s", 100)
	b.row("Ignition, 100,000 machines", "matchbox with 1,000", most.ignition, theirs.ignition, "/s", 100)
	return nil
}

func (a *asked) scripts() []float64 { return a.script }
func (a *asked) configs() []float64 { return a.ignition }

// worst is the one of all that has the least ratio to base.
func worst(base *asked, all []*asked, of func(*asked) []float64) *asked {
	return slices.MinFunc(all, func(a, b *asked) int {
		return cmp.Compare(ratio(of(a), of(base)).median, ratio(of(b), of(base)).median)
	})
}

// ask measures servers in turn.
func (b *bench) ask(ctx context.Context, sides ...*asked) error {
	for range b.runs {
		for _, s := range sides {
			d, err := s.start()
			if err != nil {
				return err
			}
			script, err := b.load(ctx, d, s.machines, s.path)
			var config float64
			if err == nil {
				config, err = b.load(ctx, d, s.machines, "/ignition?mac=%s")
			}
			d.stop()
			if err != nil {
				return err
			}
			s.script, s.ignition = append(s.script, script), append(s.ignition, config)
		}
	}
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
	// httpAddress is where scripts and configs are asked for.
	httpAddress = serverAddress + ":8080"

	loaders  = 8
	loadTime = 2 * time.Second
)

// load asks for the machines' answers in turn, over kept connections.
func (b *bench) load(ctx context.Context, d *daemon, machines int, path string) (float64, error) {
	var done atomic.Int64
	var all sync.WaitGroup
	errs := make([]error, loaders)
	spent, begin := d.spent(), time.Now()
	for i := range loaders {
		all.Go(func() {
			errs[i] = func() error {
				conn, err := net.Dial("tcp4", httpAddress)
				if err != nil {
					return err
				}
				defer conn.Close()
				in := bufio.NewReader(conn)
				for n := i; time.Since(begin) < loadTime && ctx.Err() == nil; n += loaders {
					if _, err := fmt.Fprintf(conn, "GET "+path+" HTTP/1.1\r\nHost: "+httpAddress+"\r\n\r\n", card(n%machines)); err != nil {
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
