package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// systemdSocket is systemd's own, for root only; it answers without a message bus.
const systemdSocket = "/run/systemd/private"

// Units are all that systemd has loaded, or one with details. A unit that does not exist is
// fs.ErrNotExist.
func (s *System) Units(ctx context.Context, req *api.UnitsRequest) (*api.UnitsResponse, error) {
	c, err := dbus.NewConnection(func() (*godbus.Conn, error) { return dialBus(ctx, s.path(systemdSocket), false) })
	if err != nil {
		return nil, fmt.Errorf("asking systemd at %s: %w", systemdSocket, err)
	}
	defer c.Close()
	if name := req.GetUnit(); name != "" {
		u, err := unit(ctx, c, name)
		if err != nil {
			return nil, err
		}
		return &api.UnitsResponse{Units: []*api.NodeUnit{u}}, nil
	}
	all, err := c.ListUnitsContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking systemd for its units: %w", err)
	}
	out := &api.UnitsResponse{}
	for _, u := range all {
		out.Units = append(out.Units, &api.NodeUnit{
			Name: clean(u.Name), Description: clean(u.Description), Load: u.LoadState, Active: u.ActiveState, Sub: u.SubState,
		})
	}
	slices.SortFunc(out.Units, func(a, b *api.NodeUnit) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

// dialBus speaks D-Bus at a socket, as the user that this process is; to a bus one also says
// hello.
func dialBus(ctx context.Context, socket string, bus bool) (*godbus.Conn, error) {
	c, err := godbus.Dial("unix:path="+godbus.EscapeBusAddressValue(socket), godbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	err = c.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Getuid()))})
	if err == nil && bus {
		err = c.Hello()
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func unit(ctx context.Context, c *dbus.Conn, name string) (*api.NodeUnit, error) {
	p, err := c.GetAllPropertiesContext(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("asking systemd for %s: %w", name, err)
	}
	u := &api.NodeUnit{
		Name: name, Description: clean(property[string](p, "Description")),
		Load: property[string](p, "LoadState"), Active: property[string](p, "ActiveState"), Sub: property[string](p, "SubState"),
		File: clean(property[string](p, "FragmentPath")), FileState: property[string](p, "UnitFileState"),
		MainPid: property[uint32](p, "MainPID"), Restarts: property[uint32](p, "NRestarts"),
		Memory: counted(property[uint64](p, "MemoryCurrent")), Tasks: counted(property[uint64](p, "TasksCurrent")),
		Result: property[string](p, "Result"), ExitStatus: property[int32](p, "ExecMainStatus"),
	}
	if u.Load == "not-found" {
		return nil, fmt.Errorf("systemd knows no unit %s: %w", name, fs.ErrNotExist)
	}
	if n := counted(property[uint64](p, "CPUUsageNSec")); n > 0 && n < math.MaxInt64 {
		u.Cpu = durationpb.New(time.Duration(n))
	}
	if n := property[uint64](p, "StateChangeTimestamp"); n > 0 && n < math.MaxInt64 {
		u.Since = timestamppb.New(time.UnixMicro(int64(n)))
	}
	return u, nil
}

func property[T any](p map[string]any, name string) T {
	v, _ := p[name].(T)
	return v
}

// counted is 0 for what systemd does not count, which it says by the largest number.
func counted(n uint64) uint64 {
	if n == math.MaxUint64 {
		return 0
	}
	return n
}
