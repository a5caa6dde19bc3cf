//go:build bench

package benchupload

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/staging"
	"github.com/imagectl/imagectl/test/daemon"
)

// fetched is the job of a process that platforms fetch from.
const fetched = "fetched"

// serveFile prints the URL of the file, and ends when standard input does.
func serveFile(f *os.File, j job) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := staging.New("http://" + l.Addr().String())
	url, release, err := s.Stage(ctx, upload.Wanted{Name: "disk.qcow2", Image: upload.Image{File: f, Size: j.File.Size}}, nil, func(upload.Event) {})
	if err != nil {
		return err
	}
	defer release()
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	fmt.Println(url)
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	return errors.Join(err, <-done)
}

// platformsFetch measures what OpenNebula and others fetch from, beside curl's PUT of
// the file to a sink and beside nginx, which serves the directory.
func platformsFetch(t *testing.T, dir string, f file) {
	text, err := json.Marshal(job{Target: fetched, File: f})
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env, cmd.Stderr = append(os.Environ(), jobEnv+"="+string(text)), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	url, err := said.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	s := newSink(nil)
	sinkURL := serve(t, s)
	beside := nginx(t, dir)
	var ours, put, theirs []figures
	for round := range *runs + 1 {
		o, p, n := got(t, f, url[:len(url)-1]), curl(t, f.Path, sinkURL+"/curl"), got(t, f, beside+"/dense.raw")
		if round > 0 {
			ours, put, theirs = append(ours, o), append(put, p), append(theirs, n)
		}
	}
	in.Close()
	var r report
	if err := json.NewDecoder(said).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	mine := median(ours)
	mine.peak = r.Peak
	contest{name: "fetched, beside PUT", file: f.Path, note: "curl puts to a program that computes nothing"}.print(t, mine, median(put))
	contest{name: "fetched, beside nginx", file: f.Path}.print(t, mine, median(theirs))
}

// got is curl's GET of a file.
func got(t *testing.T, f file, url string) figures {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "curl", "-sS", "-f", "-o", "/dev/null", "-w", "%{time_total} %{size_download}", url)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("curl: %v: %s", err, errs.String())
	}
	g := figures{sent: f.Size}
	var n int64
	if _, err := fmt.Sscan(out.String(), &g.seconds, &n); err != nil || n != f.Size {
		t.Fatalf("curl says %q of %d bytes: %v", out.String(), f.Size, err)
	}
	return g
}

// nginx serves a directory until the test ends.
func nginx(t *testing.T, dir string) string {
	t.Helper()
	address := daemon.Address(t)
	conf := path(dir, "nginx.conf")
	text := fmt.Sprintf("daemon off; master_process off; pid %[1]s/pid; error_log stderr error;\nevents {}\nhttp { access_log off; sendfile on; tcp_nopush on; client_body_temp_path %[1]s/n1; proxy_temp_path %[1]s/n2; fastcgi_temp_path %[1]s/n3; uwsgi_temp_path %[1]s/n4; scgi_temp_path %[1]s/n5; server { listen %[2]s; root %[1]s; } }\n", dir, address)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon.Start(t, exec.Command("nginx", "-p", dir, "-c", conf), "apt-get install nginx-light", func() error {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return "http://" + address
}
