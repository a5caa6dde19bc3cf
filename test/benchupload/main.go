// Command benchupload measures how fast a platform can fetch an image from the
// server that imagectl upload runs, against what curl does with the same file in
// the same run: a PUT to a program that throws it away, and a GET from nginx where
// that is installed. Run it with "make bench-upload". It prints ratios with their
// goals; a goal that is missed is said, and is no error, because a machine that
// does other work may miss one.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/staging"
)

const (
	speedGoal  = 0.8
	memoryGoal = 64 << 10 // KiB
	nginxAt    = "127.0.0.1:18081"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	serve := flag.String("serve", "", "serve this file until standard input ends (what the measurement starts)")
	megabytes := flag.Int64("size", 1024, "size of the file in MiB")
	runs := flag.Int("runs", 5, "how often everything is measured; the median counts")
	flag.Parse()
	err := errors.New("-runs and -size want at least 1")
	switch {
	case *serve != "":
		err = serveFile(ctx, *serve)
	case *runs > 0 && *megabytes > 0:
		err = measure(ctx, *megabytes<<20, *runs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchupload:", err)
		os.Exit(1)
	}
}

// serveFile is the side under test, in a process of its own so that its memory can
// be told: it prints the URL, and at the end its peak.
func serveFile(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := staging.New("http://" + l.Addr().String())
	url, release, err := s.Stage(ctx, upload.Wanted{Name: "disk.qcow2", Image: upload.Image{File: f, Size: st.Size()}}, nil, func(upload.Event) {})
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	fmt.Println(url)
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	if err := errors.Join(err, <-done); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmHWM:") {
			fmt.Println(line)
		}
	}
	return nil
}

// child is serveFile in a process of its own.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
	url   string
}

func startChild(ctx context.Context, file string) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, exe, "-serve", file)}
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.stdin, c.out = in, bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.url, err = c.out.ReadString('\n')
	c.url = strings.TrimSpace(c.url)
	return c, err
}

// end returns the peak of its resident memory in KiB.
func (c *child) end() (int, error) {
	c.stdin.Close()
	line, err := c.out.ReadString('\n')
	if err != nil {
		return 0, err
	}
	var kib int
	if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err != nil {
		return 0, fmt.Errorf("reading %q: %w", line, err)
	}
	return kib, c.cmd.Wait()
}

// way is one way of moving the file.
type way struct {
	name  string
	args  []string
	rates []float64
}

func measure(ctx context.Context, size int64, runs int) error {
	dir, err := os.MkdirTemp("", "benchupload")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "disk.qcow2")
	if err := noise(file, size); err != nil {
		return err
	}
	ours, err := startChild(ctx, file)
	if err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	sink := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})}
	go func() { _ = sink.Serve(l) }()
	defer sink.Close()
	ways := []*way{
		{name: "imagectl's server, curl GET", args: []string{"-o", "/dev/null", ours.url}},
		{name: "curl PUT to a program that discards", args: []string{"-T", file, "http://" + l.Addr().String() + "/x"}},
	}
	stop, err := startNginx(ctx, dir)
	if err != nil {
		fmt.Println("nginx is not compared:", err)
	} else {
		defer stop()
		ways = append(ways, &way{name: "nginx with sendfile, curl GET", args: []string{"-o", "/dev/null", "http://" + nginxAt + "/disk.qcow2"}})
	}
	// The first round warms the caches.
	for round := range runs + 1 {
		for _, w := range ways {
			rate, err := curl(ctx, size, w.args)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			if round > 0 {
				w.rates = append(w.rates, rate)
			}
		}
	}
	peak, err := ours.end()
	if err != nil {
		return fmt.Errorf("ending the server: %w", err)
	}
	for i, w := range ways {
		slices.Sort(w.rates)
		line := fmt.Sprintf("%-38s %6.0f MB/s", w.name, w.rates[len(w.rates)/2]/1e6)
		if i > 0 {
			ratio := ways[0].rates[runs/2] / w.rates[runs/2]
			line += fmt.Sprintf("  ours is %.2f times that, goal %.2f%s", ratio, speedGoal, missed(ratio < speedGoal))
		}
		fmt.Println(line)
	}
	fmt.Printf("peak of resident memory of the server: %d KiB, goal %d%s\n", peak, memoryGoal, missed(peak > memoryGoal))
	return nil
}

func missed(yes bool) string {
	if yes {
		return ": MISSED"
	}
	return ""
}

// curl returns bytes a second, by its own clock.
func curl(ctx context.Context, size int64, args []string) (float64, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "curl", append([]string{"-sS", "-f", "-w", "%{time_total} %{size_download} %{size_upload}"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("curl: %w: %s", err, errs.String())
	}
	var seconds float64
	var down, up int64
	if _, err := fmt.Sscan(out.String(), &seconds, &down, &up); err != nil || down+up != size || seconds <= 0 {
		return 0, fmt.Errorf("curl says %q of %d bytes: %w", out.String(), size, err)
	}
	return float64(size) / seconds, nil
}

// noise fills a file with what no link can compress.
func noise(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, size); err != nil {
		return err
	}
	return f.Sync()
}

// startNginx serves a directory.
func startNginx(ctx context.Context, dir string) (stop func(), err error) {
	config := fmt.Sprintf("daemon off; master_process off; pid %[1]s/pid; error_log stderr error;\nevents {}\nhttp { access_log off; sendfile on; tcp_nopush on; client_body_temp_path %[1]s/n1; proxy_temp_path %[1]s/n2; fastcgi_temp_path %[1]s/n3; uwsgi_temp_path %[1]s/n4; scgi_temp_path %[1]s/n5; server { listen %[2]s; root %[1]s; } }\n", dir, nginxAt)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nginx", "-p", dir, "-c", path)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", nginxAt)
		if err == nil {
			c.Close()
			return func() {
				_ = cmd.Process.Signal(syscall.SIGTERM)
				<-ended
			}, nil
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("nginx ended: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
