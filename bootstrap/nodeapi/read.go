package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// System is what the reading calls read. Requests come checked, with every bound set. Errors
// are for whoever asked; fs.ErrNotExist says that there is no such thing. Package inspect is
// the real one.
type System interface {
	Dmesg(context.Context, *api.DmesgRequest, func(*api.DmesgResponse) error) error
	Units(context.Context, *api.UnitsRequest) (*api.UnitsResponse, error)
	Processes(context.Context) (*api.ProcessesResponse, error)
	Disks(context.Context) (*api.DisksResponse, error)
	Network(context.Context, *api.NetworkRequest) (*api.NetworkResponse, error)
	Time(context.Context) (*api.TimeResponse, error)
	Containers() (*api.ContainersResponse, error)
	ContainerLogs(context.Context, *api.ContainerLogsRequest, func(*api.ContainerLogsResponse) error) error
	// Open opens a regular file that no symbolic link leads to; the caller closes it.
	Open(path string) (io.ReadCloser, error)
	// Match are paths that fit a pattern of path/filepath.
	Match(pattern string) []string
	// Capture writes a pcap file, without the frames of a connection.
	Capture(ctx context.Context, req *api.CaptureRequest, own [2]netip.AddrPort, w io.Writer) (*api.CaptureEnd, error)
}

const (
	// looksMax calls that look at the system once run at a time, and one may take lookTime.
	looksMax, lookTime = 4, 15 * time.Second
	// capturesMax captures, each in the memory of the kernel.
	capturesMax = 2
	// bundlesMax bundles; one may take bundleTime.
	bundlesMax, bundleTime = 1, 3 * time.Minute
	// filesMax files are read at a time; one may take fileTime.
	filesMax, fileTime = 4, time.Minute
	// captureTime is the longest capture with what it takes to send it.
	captureTime = captureSeconds*time.Second + time.Minute
)

// readAccess is the part of the table for calls that read the system.
func readAccess(readers []pki.Role) map[string]rule {
	operators := []pki.Role{pki.RoleAdmin, pki.RoleOperator}
	look := rule{roles: readers, forwarded: true, limit: lookTime}
	return map[string]rule{
		apiconnect.NodeServiceDmesgProcedure:         {roles: readers, forwarded: true},
		apiconnect.NodeServiceUnitsProcedure:         look,
		apiconnect.NodeServiceProcessesProcedure:     look,
		apiconnect.NodeServiceDisksProcedure:         look,
		apiconnect.NodeServiceNetworkProcedure:       look,
		apiconnect.NodeServiceTimeProcedure:          look,
		apiconnect.NodeServiceContainersProcedure:    look,
		apiconnect.NodeServiceContainerLogsProcedure: {roles: readers, forwarded: true},
		// These show more than a system's state: what people wrote and send.
		apiconnect.NodeServiceReadFileProcedure: {roles: operators, forwarded: true, limit: fileTime},
		apiconnect.NodeServiceCaptureProcedure:  {roles: operators, forwarded: true, limit: captureTime},
		apiconnect.NodeServiceBundleProcedure:   {roles: operators, forwarded: true, limit: bundleTime},
	}
}

// gates bound how many calls of a kind run at a time: each has room for as many.
type gates struct{ looks, files, captures, bundles, puts chan struct{} }

func newGates() gates {
	return gates{looks: make(chan struct{}, looksMax), files: make(chan struct{}, filesMax), captures: make(chan struct{}, capturesMax), bundles: make(chan struct{}, bundlesMax),
		puts: make(chan struct{}, putsMax)}
}

// enter takes a place, or says that there is none; leave gives it back.
func enter(gate chan struct{}, what string) (leave func(), err error) {
	select {
	case gate <- struct{}{}:
		return func() { <-gate }, nil
	default:
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d callers %s already; ask again", cap(gate), what))
	}
}

// ended words what became of a call.
func ended(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	var ce *connect.Error
	switch {
	case errors.Is(cause, errExpired) || errors.Is(cause, errRevoked):
		return connect.NewError(connect.CodeUnauthenticated, cause)
	case err == nil || errors.As(err, &ce):
		return err
	case errors.Is(cause, errTooLong):
		return connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("%w: %w", cause, err))
	case ctx.Err() != nil:
		return nil // nobody listens any more
	case errors.Is(err, fs.ErrNotExist):
		return connect.NewError(connect.CodeNotFound, err)
	}
	return connect.NewError(connect.CodeInternal, err)
}

// look makes a call that looks at the system once.
func look[T any](ctx context.Context, s *service, do func(context.Context) (*T, error)) (*connect.Response[T], error) {
	leave, err := enter(s.gates.looks, "look at this node")
	if err != nil {
		return nil, err
	}
	defer leave()
	m, err := do(ctx)
	if err := ended(ctx, err); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, connect.NewError(connect.CodeCanceled, context.Cause(ctx))
	}
	return connect.NewResponse(m), nil
}

// record adds who does what to the node's own log, before anything of it leaves.
func (s *service) record(ctx context.Context, action, detail string) error {
	from, _ := ctx.Value(callerKey{}).(caller)
	e := audit.Entry{Action: action, Detail: detail, Actor: from.actor()}
	if from.via != nil {
		e.Detail = strings.TrimPrefix(e.Detail+", through the server (serial "+pki.Serial(from.via)+")", ", ")
	}
	if err := s.node.Record(e); err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	return nil
}

// chunks sends what is written to it in messages.
type chunks struct {
	ctx  context.Context
	send func([]byte) error
	buf  []byte
}

// chunkSize is how much one message has, in bytes.
const chunkSize = 48 << 10

func (c *chunks) Write(p []byte) (int, error) {
	for n := len(p); ; {
		if err := c.ctx.Err(); err != nil {
			return 0, context.Cause(c.ctx)
		}
		k := min(len(p), chunkSize-len(c.buf))
		c.buf, p = append(c.buf, p[:k]...), p[k:]
		if len(c.buf) < chunkSize {
			return n, nil
		}
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
}

func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	err := c.send(c.buf)
	c.buf = c.buf[:0]
	return err
}
