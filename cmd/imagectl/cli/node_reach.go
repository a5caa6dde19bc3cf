package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

// way says how a node is reached.
type way string

const (
	// wayAuto is direct where the node's port answers from here, and else by the server.
	wayAuto   way = "auto"
	wayDirect way = "direct"
	wayServer way = "server"
)

func (w *way) String() string { return string(*w) }
func (w *way) Type() string   { return "way" }

// Set implements pflag.Value.
func (w *way) Set(s string) error {
	switch way(s) {
	case wayAuto, wayDirect, wayServer:
		*w = way(s)
		return nil
	}
	return fmt.Errorf("way %q is not known; auto, direct and server are", s)
}

// knock is how long a node's port has to answer before the server is asked instead.
const knock = 3 * time.Second

// reach is how a verb finds its node.
type reach struct {
	via     way
	address string
}

func (o *reach) flags(cmd *cobra.Command) {
	o.via = wayAuto
	cmd.Flags().Var(&o.via, "via", "how to reach the node: direct, server, or auto (direct where it answers)")
	cmd.Flags().StringVar(&o.address, "address", "", "the node's address (default: ask the server)")
}

// node is a node that can be called.
type node struct {
	apiconnect.NodeServiceClient
	name string
	// where it is reached, in words.
	where string
}

// find makes a node ready to be called. The server is needed only where no address was given,
// or where it is to pass the calls on.
func (o *reach) find(ctx context.Context, r *remote, name string) (*node, error) {
	if o.via == wayServer {
		if o.address != "" {
			return nil, usageError{errors.New("--address is for calls to the node itself; leave it out with --via server")}
		}
		return r.nodeByServer(name), nil
	}
	address := o.address
	if address == "" {
		resp, err := r.operator().ListMachines(ctx, connect.NewRequest(&api.ListMachinesRequest{}))
		if err != nil {
			return nil, r.explain(err)
		}
		for _, m := range resp.Msg.GetMachines() {
			if m.GetName() == name {
				address = m.GetAddress()
			}
		}
		if address == "" {
			return nil, fmt.Errorf("no address of %s is known; imagectl machines ls shows the machines, --address says where one is", name)
		}
	}
	at := net.JoinHostPort(address, nodePort)
	if o.via == wayAuto && o.address == "" && !answers(ctx, at) {
		return r.nodeByServer(name), nil
	}
	return &node{r.node(name, at), name, "at " + at}, nil
}

// answers says whether there is a way to an address.
func answers(ctx context.Context, at string) bool {
	d := net.Dialer{Timeout: knock}
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// nodeByServer calls a node by way of the server.
func (r *remote) nodeByServer(name string) *node {
	c := apiconnect.NewNodeServiceClient(r.client(""), r.Server, connect.WithInterceptors(toNode(name)))
	return &node{c, name, "through the server"}
}

// toNode names the node in each call to the server.
type toNode string

// WrapUnary implements connect.Interceptor.
func (n toNode) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		req.Header().Set(nodeapi.HeaderNode, string(n))
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (n toNode) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		c := next(ctx, spec)
		c.RequestHeader().Set(nodeapi.HeaderNode, string(n))
		return c
	}
}

// WrapStreamingHandler implements connect.Interceptor; there are no handlers here.
func (n toNode) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// explain says what to do about the error of a call; what is what was asked for.
func (n *node) explain(what string, err error) error {
	var ce *connect.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &ce):
		return fmt.Errorf("%s of %s: %w", what, n.name, err)
	case ce.Code() == connect.CodeUnavailable:
		return fmt.Errorf("%s does not answer %s (%s); it answers once it runs from its own disk", n.name, n.where, ce.Message())
	case ce.Code() == connect.CodeUnimplemented:
		return fmt.Errorf("%s of %s: its agent is older than this imagectl and has no such call", what, n.name)
	}
	return fmt.Errorf("%s of %s: %s", what, n.name, ce.Message())
}

// stream hands each message of a call that streams to do.
func stream[T any](ctx context.Context, n *node, what string, s *connect.ServerStreamForClient[T], err error, do func(*T) error) error {
	if err != nil {
		return n.explain(what, err)
	}
	defer s.Close()
	for s.Receive() {
		if err := do(s.Msg()); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil && ctx.Err() == nil {
		return n.explain(what, err)
	}
	return nil
}
