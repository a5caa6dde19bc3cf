package nodeapi

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// small is a system with one of each.
type small struct {
	// file is what every file holds; nil for "content of " and its name.
	file []byte
	// captured gets what a capture was asked for; nil for nobody who looks.
	captured func(*api.CaptureRequest, [2]netip.AddrPort)
	// hangs: what looks once ends with its context only.
	hangs bool
}

func (small) Dmesg(_ context.Context, _ *api.DmesgRequest, send func(*api.DmesgResponse) error) error {
	return send(&api.DmesgResponse{Line: "booted"})
}
func (s small) Units(ctx context.Context, r *api.UnitsRequest) (*api.UnitsResponse, error) {
	if s.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.GetUnit() == "missing.service" {
		return nil, fmt.Errorf("systemd knows no unit %s: %w", r.GetUnit(), fs.ErrNotExist)
	}
	return &api.UnitsResponse{Units: []*api.NodeUnit{{Name: "etcd.service"}}}, nil
}
func (small) Processes(context.Context) (*api.ProcessesResponse, error) {
	return &api.ProcessesResponse{Processes: []*api.NodeProcess{{Pid: 1}}}, nil
}
func (small) Disks(context.Context) (*api.DisksResponse, error) {
	return nil, errors.New("no disk answers")
}
func (small) Network(context.Context, *api.NetworkRequest) (*api.NetworkResponse, error) {
	return &api.NetworkResponse{}, nil
}
func (small) Time(context.Context) (*api.TimeResponse, error) { return &api.TimeResponse{}, nil }
func (small) Containers() (*api.ContainersResponse, error) {
	return &api.ContainersResponse{Containers: []*api.NodeContainer{{Namespace: "kube-system", Pod: "coredns", Container: "coredns"}, {Namespace: "shop", Pod: "db", Container: "db"}}}, nil
}
func (small) ContainerLogs(_ context.Context, r *api.ContainerLogsRequest, send func(*api.ContainerLogsResponse) error) error {
	return send(&api.ContainerLogsResponse{Stream: "stdout", Line: "log of " + r.GetNamespace() + "/" + r.GetPod()})
}
func (s small) Open(name string) (io.ReadCloser, error) {
	if s.file != nil {
		return io.NopCloser(bytes.NewReader(s.file)), nil
	}
	return io.NopCloser(strings.NewReader("content of " + name)), nil
}
func (small) Match(pattern string) []string {
	return []string{strings.ReplaceAll(pattern, "*", "x"), "/etc/kubernetes/pki/ca.key"}
}
func (s small) Capture(_ context.Context, r *api.CaptureRequest, own [2]netip.AddrPort, w io.Writer) (*api.CaptureEnd, error) {
	if s.captured != nil {
		s.captured(r, own)
	}
	_, err := w.Write(make([]byte, 2*chunkSize+1))
	return &api.CaptureEnd{Packets: 3, Reason: "time"}, err
}

// whole is small whose disks answer: for tests that want every call to succeed.
type wholeSystem struct{ small }

func (wholeSystem) Disks(context.Context) (*api.DisksResponse, error) {
	return &api.DisksResponse{}, nil
}

func TestFilesHoldNoSecret(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"/etc/kubernetes/pki/ca.key", "/etc/kubernetes/pki/ca.crt", "/etc/kubernetes/pki/etcd/server.key", "/etc/kubernetes/admin.conf", "/etc/kubernetes/kubelet.conf",
		"/etc/kubernetes/manifests/../pki/ca.key", "/etc/kubernetes/manifests//../pki/x.yaml", "/etc/kubernetes/manifests/a/b.yaml", "/etc/kubernetes/manifests/x.yaml/",
		"/etc/imagectl/node.json", "/var/lib/imagectl/node.key", "/var/lib/imagectl/run.json", "/etc/shadow", "/etc/ssh/ssh_host_ed25519_key", "/etc/etcd/pki/peer.key",
		"/var/lib/kubelet/pki/kubelet-client-current.pem", "/etc/systemd/network/10-wg.netdev", "/etc/containerd/certs.d/x/hosts.toml", "/etc/imagectl/proxy.env", "/proc/1/environ", "/proc/kcore", "/dev/sda", "", "/", "etc/hosts", "/etc/hosts/", "/etc/../etc/hosts",
	} {
		if readable(name) {
			t.Errorf("%s may be read", name)
		}
	}
	for _, name := range []string{"/proc/meminfo", "/etc/kubernetes/manifests/etcd.yaml", "/proc/pressure/io", "/usr/lib/os-release"} {
		if !readable(name) {
			t.Errorf("%s may not be read", name)
		}
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	r := &record{}
	l := newLabOf(t, fake{record: r, system: small{file: bytes.Repeat([]byte("x"), fileMax+1)}})
	c := l.client(l.cert(l.ca, l.profile("operator", pki.RoleOperator)))
	read := func(name string) (n int, truncated bool, err error) {
		s, err := c.ReadFile(t.Context(), connect.NewRequest(&api.ReadFileRequest{Path: name}))
		if err != nil {
			return 0, false, err
		}
		defer s.Close()
		for s.Receive() {
			n += len(s.Msg().GetChunk())
			truncated = truncated || s.Msg().GetTruncated()
		}
		return n, truncated, s.Err()
	}
	if n, cut, err := read("/proc/meminfo"); n != fileMax || !cut || err != nil {
		t.Errorf("got %d bytes, truncated %v, %v", n, cut, err)
	}
	if e := r.entries[0]; e.Action != "file-read" || e.Detail != "/proc/meminfo" || e.Actor.Source != "127.0.0.1" {
		t.Errorf("the log has %+v", e)
	}
	want := `invalid_argument: "/etc/kubernetes/pki/ca.key" is not among the files that a node shows; docs/node-api.md has the list`
	if n, _, err := read("/etc/kubernetes/pki/ca.key"); n != 0 || err == nil || err.Error() != want {
		t.Errorf("got %d bytes, %v", n, err)
	}
	r.fails = errors.New("the disk is full")
	if n, _, err := read("/proc/meminfo"); n != 0 || err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("what cannot be recorded: %d bytes, %v", n, err)
	}
}

func TestCaptureIsBoundedAndLeavesTheCallerOut(t *testing.T) {
	t.Parallel()
	var asked *api.CaptureRequest
	var own [2]netip.AddrPort
	r := &record{}
	l := newLabOf(t, fake{record: r, system: small{captured: func(q *api.CaptureRequest, o [2]netip.AddrPort) { asked, own = q, o }}})
	c := l.client(l.cert(l.ca, l.profile("operator", pki.RoleOperator)))
	capture := func(q *api.CaptureRequest) (n int, end *api.CaptureEnd, err error) {
		s, err := c.Capture(t.Context(), connect.NewRequest(q))
		if err != nil {
			return 0, nil, err
		}
		defer s.Close()
		for s.Receive() {
			n += len(s.Msg().GetChunk())
			end = s.Msg().GetEnd()
		}
		return n, end, s.Err()
	}
	if n, end, err := capture(&api.CaptureRequest{Link: "eth0", Port: 53, Protocol: "udp"}); n != 2*chunkSize+1 || end.GetPackets() != 3 || err != nil {
		t.Errorf("got %d bytes, %v, %v", n, end, err)
	}
	if asked.GetSeconds() != captureSecondsDefault || asked.GetPackets() != capturePacketsDefault || asked.GetBytes() != captureBytesDefault {
		t.Errorf("asked for %v", asked)
	}
	if want := netip.MustParseAddrPort(strings.TrimPrefix(l.url, "https://")); own[0] != want || own[1].Addr() != want.Addr() || own[1].Port() == 0 {
		t.Errorf("left out is %v, the API is at %v", own, want)
	}
	if e := r.entries[0]; e.Action != "packets-captured" || e.Detail != "on eth0 for 30s, at most 10000 packets and 16777216 bytes, protocol udp, port 53" {
		t.Errorf("the log has %+v", e)
	}
	for want, q := range map[string]*api.CaptureRequest{
		`invalid_argument: "" is no name of a link`:                    {},
		`invalid_argument: "../eth0" is no name of a link`:             {Link: "../eth0"},
		"invalid_argument: 301 seconds exceed 300":                     {Link: "eth0", Seconds: 301},
		"invalid_argument: 100001 packets exceed 100000":               {Link: "eth0", Packets: 100_001},
		"invalid_argument: 67108865 bytes exceed 67108864":             {Link: "eth0", Bytes: 64<<20 + 1},
		"invalid_argument: 18446744073709551615 bytes exceed 67108864": {Link: "eth0", Bytes: 1<<64 - 1},
	} {
		if _, _, err := capture(q); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestContainerLogsAreAskedForByName(t *testing.T) {
	t.Parallel()
	for want, q := range map[string]*api.ContainerLogsRequest{
		`"" is no name of a namespace`:         {Pod: "p"},
		`"" is no name of a pod`:               {Namespace: "n"},
		`"../x" is no name of a pod`:           {Namespace: "n", Pod: "../x"},
		`"a_b" is no name of a pod`:            {Namespace: "n", Pod: "a_b"},
		`"a/b" is no name of a container`:      {Namespace: "n", Pod: "p", Container: "a/b"},
		"the log of before the last start has": {Namespace: "n", Pod: "p", Previous: true, Follow: true},
	} {
		if _, err := containerQuery(q); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	for lines, want := range map[uint32]uint32{0: 100, 5: 5, 1 << 31: linesMax} {
		if q, err := containerQuery(&api.ContainerLogsRequest{Namespace: "n", Pod: "p", Lines: lines}); err != nil || q.GetLines() != want {
			t.Errorf("%d lines: got %d, %v", lines, q.GetLines(), err)
		}
	}
}

// A bundle has what can be had, says what cannot, holds no secret, and only who was named opens it.
func TestBundle(t *testing.T) {
	t.Parallel()
	r := &record{}
	l := newLabOf(t, fake{record: r, system: small{}})
	c := l.client(l.cert(l.ca, l.profile("operator", pki.RoleOperator)))
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Bundle(t.Context(), connect.NewRequest(&api.BundleRequest{Recipients: []string{key.Recipient().String()}}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var sealed bytes.Buffer
	for s.Receive() {
		sealed.Write(s.Msg().GetChunk())
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	if bytes.Contains(sealed.Bytes(), []byte("booted")) {
		t.Error("it is not encrypted")
	}
	plain, err := age.Decrypt(&sealed, key)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for tr := tar.NewReader(plain); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(b)
	}
	for name, want := range map[string]string{
		"version.json": `"test"`, "health.json": "true", "units.json": "etcd.service", "processes.json": "pid", "dmesg.txt": "booted", "journal.txt": "ready",
		"containers.json": "shop", "containers/kube-system/coredns/coredns.txt": "log of kube-system/coredns", "files/proc/meminfo": "content of /proc/meminfo",
		"files/etc/kubernetes/manifests/x.yaml": "content of", "errors.txt": "disks.json: no disk answers\n",
	} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s holds %q, want %q", name, got[name], want)
		}
	}
	for name := range got {
		if strings.Contains(name, "pki") || strings.Contains(name, "shop") {
			t.Errorf("it holds %s", name)
		}
	}
	if e := r.entries[0]; e.Action != "bundle-made" || e.Detail != "for "+key.Recipient().String() {
		t.Errorf("the log has %+v", e)
	}
	for want, to := range map[string][]string{
		"invalid_argument: a bundle takes 1 to 16 recipients, not 0":  nil,
		"invalid_argument: a bundle takes 1 to 16 recipients, not 17": slices.Repeat([]string{key.Recipient().String()}, 17),
		`invalid_argument: recipient "age1x"`:                         {"age1x"},
	} {
		s, err := c.Bundle(t.Context(), connect.NewRequest(&api.BundleRequest{Recipients: to}))
		if err != nil {
			t.Fatal(err)
		}
		if s.Receive() || !strings.HasPrefix(s.Err().Error(), want) {
			t.Errorf("got  %v\nwant %s", s.Err(), want)
		}
		_ = s.Close()
	}
}

func TestABundleHasBounds(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	b := bundle{tar: tar.NewWriter(&out)}
	for i := range bundleMax/partMax + 2 {
		if err := b.add(fmt.Sprint(i), make([]byte, partMax+1), nil); err != nil {
			t.Fatal(err)
		}
	}
	if b.size > bundleMax || out.Len() > bundleMax+64<<10 || !strings.Contains(b.errors.String(), "9: left out: the bundle has 67108864 bytes already\n") || !strings.Contains(b.errors.String(), "0: it is cut off\n") {
		t.Errorf("%d bytes, errors:\n%s", b.size, b.errors.String())
	}
	var l limited
	n := 0
	for ; l.line("%s", strings.Repeat("x", 1<<20)) == nil; n++ {
	}
	if len(l.b) > partMax+1<<20+1 || n > 9 {
		t.Errorf("text grew to %d bytes", len(l.b))
	}
}

func TestNoMoreAtATimeThanThereIsRoomFor(t *testing.T) {
	t.Parallel()
	s := &service{node: fake{}, gates: newGates(), streams: make(chan struct{}, 1)}
	for _, g := range []chan struct{}{s.gates.looks, s.gates.files, s.gates.captures, s.gates.bundles, s.streams} {
		for range cap(g) {
			g <- struct{}{}
		}
	}
	ctx, key := t.Context(), samples(t)
	_, err1 := s.Units(ctx, connect.NewRequest(&api.UnitsRequest{}))
	_, err2 := s.Processes(ctx, connect.NewRequest(&api.ProcessesRequest{}))
	for i, err := range []error{
		err1, err2,
		s.ReadFile(ctx, connect.NewRequest(&api.ReadFileRequest{Path: "/proc/stat"}), nil),
		s.Capture(ctx, connect.NewRequest(&api.CaptureRequest{Link: "lo"}), nil),
		s.Bundle(ctx, connect.NewRequest(key["/imagectl.v1.NodeService/Bundle"].(*api.BundleRequest)), nil),
		s.Dmesg(ctx, connect.NewRequest(&api.DmesgRequest{}), nil),
		s.ContainerLogs(ctx, connect.NewRequest(&api.ContainerLogsRequest{Namespace: "n", Pod: "p"}), nil),
	} {
		if connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("%d: got %v", i, err)
		}
	}
}

func TestErrorsHaveTheirCodes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.client(l.cert(l.ca, l.profile("operator", pki.RoleReader)))
	for unit, want := range map[string]connect.Code{"missing.service": connect.CodeNotFound, "-x": connect.CodeInvalidArgument} {
		if _, err := c.Units(t.Context(), connect.NewRequest(&api.UnitsRequest{Unit: unit})); connect.CodeOf(err) != want {
			t.Errorf("%s: got %v", unit, err)
		}
	}
	if err := ended(t.Context(), errors.New("x")); connect.CodeOf(err) != connect.CodeInternal {
		t.Errorf("got %v", err)
	}
	// What takes longer than its kind may is ended.
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), lookTime, errTooLong)
		defer cancel()
		s := &service{node: fake{system: small{hangs: true}}, gates: newGates()}
		begin := time.Now()
		_, err := s.Units(ctx, connect.NewRequest(&api.UnitsRequest{}))
		if connect.CodeOf(err) != connect.CodeDeadlineExceeded || !strings.Contains(err.Error(), errTooLong.Error()) || time.Since(begin) != lookTime {
			t.Errorf("got %v after %s", err, time.Since(begin))
		}
		if len(s.gates.looks) != 0 {
			t.Error("it keeps its place")
		}
	})
	for procedure, r := range access() {
		m := methods()[procedure]
		if r.limit == 0 && m != nil && !m.IsStreamingServer() && procedure != "/imagectl.v1.NodeService/Version" && procedure != "/imagectl.v1.NodeService/Health" && procedure != "/imagectl.v1.NodeService/AuditHeads" {
			t.Errorf("%s may take for ever", procedure)
		}
	}
}
