package nodeapi

import (
	"context"
	"fmt"
	"regexp"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// labelRE is what namespaces, pods and containers are called: DNS names (kubernetes,
// apimachinery's validation). Neither a path nor the separator of kubelet's directories fits.
var labelRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

// Units implements apiconnect.NodeServiceHandler.
func (s *service) Units(ctx context.Context, req *connect.Request[api.UnitsRequest]) (*connect.Response[api.UnitsResponse], error) {
	if u := req.Msg.GetUnit(); u != "" && !unitRE.MatchString(u) {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%q is no unit name", u))
	}
	return look(ctx, s, func(ctx context.Context) (*api.UnitsResponse, error) { return s.node.System().Units(ctx, req.Msg) })
}

// Processes implements apiconnect.NodeServiceHandler.
func (s *service) Processes(ctx context.Context, _ *connect.Request[api.ProcessesRequest]) (*connect.Response[api.ProcessesResponse], error) {
	return look(ctx, s, s.node.System().Processes)
}

// Disks implements apiconnect.NodeServiceHandler.
func (s *service) Disks(ctx context.Context, _ *connect.Request[api.DisksRequest]) (*connect.Response[api.DisksResponse], error) {
	return look(ctx, s, s.node.System().Disks)
}

// Network implements apiconnect.NodeServiceHandler.
func (s *service) Network(ctx context.Context, req *connect.Request[api.NetworkRequest]) (*connect.Response[api.NetworkResponse], error) {
	return look(ctx, s, func(ctx context.Context) (*api.NetworkResponse, error) { return s.node.System().Network(ctx, req.Msg) })
}

// Time implements apiconnect.NodeServiceHandler.
func (s *service) Time(ctx context.Context, _ *connect.Request[api.TimeRequest]) (*connect.Response[api.TimeResponse], error) {
	return look(ctx, s, s.node.System().Time)
}

// Containers implements apiconnect.NodeServiceHandler.
func (s *service) Containers(ctx context.Context, _ *connect.Request[api.ContainersRequest]) (*connect.Response[api.ContainersResponse], error) {
	return look(ctx, s, func(context.Context) (*api.ContainersResponse, error) { return s.node.System().Containers() })
}

// Dmesg implements apiconnect.NodeServiceHandler.
func (s *service) Dmesg(ctx context.Context, req *connect.Request[api.DmesgRequest], out *connect.ServerStream[api.DmesgResponse]) error {
	leave, err := enter(s.streams, "follow logs")
	if err != nil {
		return err
	}
	defer leave()
	q := &api.DmesgRequest{Follow: req.Msg.GetFollow(), Lines: min(req.Msg.GetLines(), linesMax)}
	err = s.node.System().Dmesg(ctx, q, func(m *api.DmesgResponse) error {
		m.Line = cut(m.GetLine(), lineMax)
		return out.Send(m)
	})
	return ended(ctx, err)
}

// ContainerLogs implements apiconnect.NodeServiceHandler.
func (s *service) ContainerLogs(ctx context.Context, req *connect.Request[api.ContainerLogsRequest], out *connect.ServerStream[api.ContainerLogsResponse]) error {
	q, err := containerQuery(req.Msg)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	leave, err := enter(s.streams, "follow logs")
	if err != nil {
		return err
	}
	defer leave()
	err = s.node.System().ContainerLogs(ctx, q, func(m *api.ContainerLogsResponse) error {
		m.Line = cut(m.GetLine(), lineMax)
		return out.Send(m)
	})
	return ended(ctx, err)
}

func containerQuery(m *api.ContainerLogsRequest) (*api.ContainerLogsRequest, error) {
	q := proto.CloneOf(m)
	for what, name := range map[string]string{"namespace": q.GetNamespace(), "pod": q.GetPod(), "container": q.GetContainer()} {
		if !labelRE.MatchString(name) && (name != "" || what != "container") {
			return nil, fmt.Errorf("%q is no name of a %s", name, what)
		}
	}
	if q.GetPrevious() && q.GetFollow() {
		return nil, fmt.Errorf("the log of before the last start has ended: it cannot be followed")
	}
	if q.GetSince() != nil {
		if err := q.GetSince().CheckValid(); err != nil {
			return nil, err
		}
	}
	if q.Lines = min(q.GetLines(), linesMax); q.GetLines() == 0 {
		q.Lines = 100
	}
	return q, nil
}

// cut shortens text, which stays UTF-8.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return string([]rune(s[:most]))
}

const (
	captureSeconds, captureSecondsDefault = 300, 30
	capturePackets, capturePacketsDefault = 100_000, 10_000
	captureBytes, captureBytesDefault     = 64 << 20, 16 << 20
)

// Capture implements apiconnect.NodeServiceHandler. Who captures what is in the node's own log
// before the first frame.
func (s *service) Capture(ctx context.Context, req *connect.Request[api.CaptureRequest], out *connect.ServerStream[api.CaptureResponse]) error {
	q, err := captureQuery(req.Msg)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	leave, err := enter(s.gates.captures, "capture packets")
	if err != nil {
		return err
	}
	defer leave()
	if err := s.record(ctx, "packets-captured", captureWords(q)); err != nil {
		return err
	}
	from, _ := ctx.Value(callerKey{}).(caller)
	w := &chunks{ctx: ctx, send: func(b []byte) error { return out.Send(&api.CaptureResponse{Chunk: b}) }}
	end, err := s.node.System().Capture(ctx, q, from.conn, w)
	if err == nil {
		err = w.flush()
	}
	if err == nil {
		err = out.Send(&api.CaptureResponse{End: end})
	}
	return ended(ctx, err)
}

// linkRE is what the kernel lets a link be called, less what would be hard to type
// (net/core/dev.c, dev_valid_name).
var linkRE = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,15}$`)

func captureQuery(m *api.CaptureRequest) (*api.CaptureRequest, error) {
	q := proto.CloneOf(m)
	if n := q.GetLink(); !linkRE.MatchString(n) || n == "." || n == ".." {
		return nil, fmt.Errorf("%q is no name of a link", n)
	}
	for _, b := range []struct {
		what          string
		n, most, none uint64
		set           func(uint64)
	}{
		{"seconds", uint64(q.GetSeconds()), captureSeconds, captureSecondsDefault, func(n uint64) { q.Seconds = uint32(n) }},
		{"packets", uint64(q.GetPackets()), capturePackets, capturePacketsDefault, func(n uint64) { q.Packets = uint32(n) }},
		{"bytes", q.GetBytes(), captureBytes, captureBytesDefault, func(n uint64) { q.Bytes = n }},
	} {
		if b.n > b.most {
			return nil, fmt.Errorf("%d %s exceed %d", b.n, b.what, b.most)
		}
		if b.n == 0 {
			b.n = b.none
		}
		b.set(b.n)
	}
	return q, nil
}
