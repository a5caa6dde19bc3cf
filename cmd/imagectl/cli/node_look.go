package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newNodeUnits(g *globals) *cobra.Command {
	var f format
	var failed bool
	cmd := nodeVerb{
		use: "units NODE [UNIT]", short: "systemd's units and their state, or one with details",
		example: "  imagectl node units w1 --failed\n  imagectl node units w1 kubelet.service", most: 1,
		run: func(ctx context.Context, n *node, args []string) error {
			req := &api.UnitsRequest{}
			if len(args) > 0 {
				req.Unit = args[0]
			}
			resp, err := n.Units(ctx, connect.NewRequest(req))
			if err != nil {
				return n.explain("reading units", err)
			}
			units := slices.DeleteFunc(resp.Msg.GetUnits(), func(u *api.NodeUnit) bool { return failed && u.GetActive() != "failed" })
			if f == formatJSON {
				return printMessages(g.stdio.Out, units)
			}
			if req.GetUnit() != "" && len(units) == 1 {
				return printUnit(g.stdio.Out, units[0])
			}
			rows := [][]string{}
			for _, u := range units {
				rows = append(rows, []string{u.GetName(), u.GetLoad(), u.GetActive(), u.GetSub(), u.GetDescription()})
			}
			return table(g.stdio.Out, []string{"UNIT", "LOAD", "ACTIVE", "SUB", "DESCRIPTION"}, rows)
		},
	}.command(g)
	formatFlag(cmd, &f)
	cmd.Flags().BoolVar(&failed, "failed", false, "only those that have failed")
	return cmd
}

func printUnit(w io.Writer, u *api.NodeUnit) error {
	rows := [][]string{
		{"description", u.GetDescription()}, {"state", fmt.Sprintf("%s, %s (%s) since %s", u.GetLoad(), u.GetActive(), u.GetSub(), moment(u.GetSince()))},
		{"file", strings.TrimSpace(u.GetFile() + " " + u.GetFileState())}, {"result", u.GetResult()},
	}
	if u.GetMainPid() > 0 {
		rows = append(rows, []string{"main process", fmt.Sprint(u.GetMainPid())})
	}
	rows = append(rows, []string{"restarts", fmt.Sprint(u.GetRestarts())}, []string{"last exit", fmt.Sprint(u.GetExitStatus())})
	if u.GetMemory() > 0 {
		rows = append(rows, []string{"memory", bytesOf(u.GetMemory())}, []string{"tasks", fmt.Sprint(u.GetTasks())}, []string{"cpu", span(u.GetCpu())})
	}
	return table(w, []string{"unit", u.GetName()}, rows)
}

func newNodePs(g *globals) *cobra.Command {
	var f format
	var by string
	var kernel bool
	cmd := nodeVerb{
		use: "ps NODE", short: "Processes: number, user, processor time, memory, command",
		example: "  imagectl node ps w1 --sort memory",
		run: func(ctx context.Context, n *node, _ []string) error {
			less := map[string]func(a, b *api.NodeProcess) int{
				"pid":    func(a, b *api.NodeProcess) int { return cmp.Compare(a.GetPid(), b.GetPid()) },
				"cpu":    func(a, b *api.NodeProcess) int { return cmp.Compare(b.GetCpu().AsDuration(), a.GetCpu().AsDuration()) },
				"memory": func(a, b *api.NodeProcess) int { return cmp.Compare(b.GetResident(), a.GetResident()) },
			}[by]
			if less == nil {
				return usageError{fmt.Errorf("--sort %q is not known; pid, cpu and memory are", by)}
			}
			resp, err := n.Processes(ctx, connect.NewRequest(&api.ProcessesRequest{}))
			if err != nil {
				return n.explain("reading processes", err)
			}
			m := resp.Msg
			slices.SortStableFunc(m.GetProcesses(), less)
			if f == formatJSON {
				return printMessage(g.stdio.Out, m)
			}
			rows := [][]string{}
			for _, p := range m.GetProcesses() {
				if p.GetCommand() == "" && p.GetState() != "Z" && !kernel {
					continue
				}
				rows = append(rows, []string{fmt.Sprint(p.GetPid()), fmt.Sprint(p.GetParent()), cmp.Or(p.GetUser(), fmt.Sprint(p.GetUid())), p.GetState(), span(p.GetCpu()), bytesOf(p.GetResident()), moment(p.GetStarted()), cmp.Or(p.GetCommand(), p.GetName())})
			}
			if err := table(g.stdio.Out, []string{"PID", "PARENT", "USER", "STATE", "CPU", "MEMORY", "STARTED", "COMMAND"}, rows); err != nil {
				return err
			}
			if m.GetTruncated() {
				fmt.Fprintln(g.stdio.Err, "there are more processes than a node lists")
			}
			return nil
		},
	}.command(g)
	formatFlag(cmd, &f)
	cmd.Flags().StringVar(&by, "sort", "pid", "order: pid, cpu or memory")
	cmd.Flags().BoolVar(&kernel, "kernel", false, "threads of the kernel too")
	return cmd
}

func newNodeDisks(g *globals) *cobra.Command {
	var f format
	cmd := nodeVerb{
		use: "disks NODE", short: "Block devices, and how full file systems are",
		example: "  imagectl node disks w1",
		run: func(ctx context.Context, n *node, _ []string) error {
			resp, err := n.Disks(ctx, connect.NewRequest(&api.DisksRequest{}))
			if err != nil {
				return n.explain("reading disks", err)
			}
			if f == formatJSON {
				return printMessage(g.stdio.Out, resp.Msg)
			}
			return printDisks(g.stdio.Out, resp.Msg)
		},
	}.command(g)
	formatFlag(cmd, &f)
	return cmd
}

func printDisks(w io.Writer, m *api.DisksResponse) error {
	var rows [][]string
	for _, d := range m.GetDevices() {
		name := d.GetName()
		if d.GetParent() != "" {
			name = "  " + name
		}
		rows = append(rows, []string{name, d.GetType(), bytesOf(d.GetSize()), d.GetModel(), d.GetSerial(), d.GetFileSystem(), cmp.Or(d.GetLabel(), d.GetPartLabel()), strings.Join(d.GetMounts(), " ")})
	}
	if err := table(w, []string{"DEVICE", "TYPE", "SIZE", "MODEL", "SERIAL", "FILE SYSTEM", "LABEL", "MOUNTED AT"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, s := range m.GetFileSystems() {
		use, inodes := s.GetError(), ""
		if use == "" {
			use = percent(s.GetUsed(), s.GetUsed()+s.GetAvailable())
		}
		if s.GetInodes() > 0 {
			inodes = percent(s.GetInodes()-s.GetInodesFree(), s.GetInodes())
		}
		rows = append(rows, []string{s.GetTarget(), s.GetSource(), s.GetType(), bytesOf(s.GetSize()), bytesOf(s.GetUsed()), bytesOf(s.GetAvailable()), use, inodes})
	}
	fmt.Fprintln(w)
	return table(w, []string{"MOUNTED AT", "SOURCE", "TYPE", "SIZE", "USED", "FREE", "USE", "INODES"}, rows)
}

// percent is rounded up, as df does.
func percent(part, of uint64) string {
	if of == 0 {
		return "-"
	}
	return strconv.FormatUint((part*100+of-1)/of, 10) + "%"
}

func newNodeNet(g *globals) *cobra.Command {
	var f format
	var sockets, routes bool
	cmd := nodeVerb{
		use: "net NODE", short: "Links and addresses, routes, sockets",
		example: "  imagectl node net w1\n  imagectl node net w1 --sockets",
		run: func(ctx context.Context, n *node, _ []string) error {
			resp, err := n.Network(ctx, connect.NewRequest(&api.NetworkRequest{NoSockets: !sockets && f != formatJSON}))
			if err != nil {
				return n.explain("reading the network", err)
			}
			m := resp.Msg
			if f == formatJSON {
				return printMessage(g.stdio.Out, m)
			}
			switch {
			case sockets:
				err = printSockets(g.stdio.Out, m)
			case routes:
				err = printRoutes(g.stdio.Out, m, true)
			default:
				err = printLinks(g.stdio.Out, m)
			}
			if err == nil && m.GetTruncated() {
				fmt.Fprintln(g.stdio.Err, "there are more than a node lists")
			}
			return err
		},
	}.command(g)
	formatFlag(cmd, &f)
	cmd.Flags().BoolVar(&sockets, "sockets", false, "TCP and UDP sockets, with who holds them")
	cmd.Flags().BoolVar(&routes, "routes", false, "routes of all tables (default: the main one's, behind the links)")
	cmd.MarkFlagsMutuallyExclusive("sockets", "routes")
	return cmd
}

func printLinks(w io.Writer, m *api.NetworkResponse) error {
	var rows [][]string
	for _, l := range m.GetLinks() {
		speed := ""
		if l.GetSpeed() > 0 {
			speed = fmt.Sprintf("%dM", l.GetSpeed())
		}
		rows = append(rows, []string{l.GetName(), l.GetType(), l.GetState(), l.GetMac(), fmt.Sprint(l.GetMtu()), speed, l.GetMaster(), bytesOf(l.GetRxBytes()), bytesOf(l.GetTxBytes()),
			fmt.Sprint(l.GetRxErrors() + l.GetTxErrors()), fmt.Sprint(l.GetRxDropped() + l.GetTxDropped()), strings.Join(l.GetAddresses(), " ")})
	}
	if err := table(w, []string{"LINK", "TYPE", "STATE", "MAC", "MTU", "SPEED", "MASTER", "IN", "OUT", "ERRORS", "DROPPED", "ADDRESSES"}, rows); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if err := printRoutes(w, m, false); err != nil {
		return err
	}
	if len(m.GetDns()) > 0 {
		fmt.Fprintf(w, "\nname servers: %s\n", text(strings.Join(m.GetDns(), ", ")))
	}
	return nil
}

func printRoutes(w io.Writer, m *api.NetworkResponse, all bool) error {
	const main = 254 // RT_TABLE_MAIN
	var rows [][]string
	for _, r := range m.GetRoutes() {
		if all || r.GetTable() == main {
			rows = append(rows, []string{r.GetDestination(), r.GetGateway(), r.GetLink(), r.GetSource(), fmt.Sprint(r.GetMetric()), r.GetType(), r.GetProtocol(), fmt.Sprint(r.GetTable())})
		}
	}
	return table(w, []string{"DESTINATION", "GATEWAY", "LINK", "SOURCE", "METRIC", "TYPE", "PROTOCOL", "TABLE"}, rows)
}

func printSockets(w io.Writer, m *api.NetworkResponse) error {
	var rows [][]string
	for _, s := range m.GetSockets() {
		who := ""
		if s.GetPid() > 0 {
			who = fmt.Sprintf("%s (%d)", s.GetProcess(), s.GetPid())
		}
		rows = append(rows, []string{s.GetProtocol(), s.GetState(), s.GetLocal(), s.GetRemote(), fmt.Sprint(s.GetReceiveQueue()), fmt.Sprint(s.GetSendQueue()), who})
	}
	return table(w, []string{"PROTOCOL", "STATE", "LOCAL", "REMOTE", "IN QUEUE", "OUT QUEUE", "PROCESS"}, rows)
}

func newNodeTime(g *globals) *cobra.Command {
	var f format
	cmd := nodeVerb{
		use: "time NODE", short: "Whether the clock is kept, by whom, and how far off it is",
		example: "  imagectl node time w1",
		run: func(ctx context.Context, n *node, _ []string) error {
			before := time.Now()
			resp, err := n.Time(ctx, connect.NewRequest(&api.TimeRequest{}))
			after := time.Now()
			if err != nil {
				return n.explain("reading the clock", err)
			}
			m := resp.Msg
			if f == formatJSON {
				return printMessage(g.stdio.Out, m)
			}
			return table(g.stdio.Out, []string{"node", n.name}, timeRows(m, before, after))
		},
	}.command(g)
	formatFlag(cmd, &f)
	return cmd
}

func timeRows(m *api.TimeResponse, before, after time.Time) [][]string {
	kept := "no: the kernel says that nobody keeps it"
	if m.GetSynchronised() {
		kept = "yes"
	}
	// What the answer took is what the comparison may be off by.
	took := after.Sub(before)
	ahead := m.GetNow().AsTime().Sub(before.Add(took / 2)).Round(time.Millisecond)
	source := strings.TrimSpace(m.GetSource() + " " + m.GetSourceAddress())
	if m.GetStratum() > 0 {
		source += fmt.Sprintf(" (stratum %d)", m.GetStratum())
	}
	rows := [][]string{
		{"clock", m.GetNow().AsTime().Local().Format(time.RFC3339)}, {"ahead of this machine's", fmt.Sprintf("%s (give or take %s)", ahead, (took / 2).Round(time.Millisecond))},
		{"kept", kept}, {"source", cmp.Or(source, m.GetNote())}, {"behind its source", span(m.GetOffset())}, {"at most off by", span(m.GetMaxError())}, {"last kept at", moment(m.GetLastSync())},
	}
	if m.GetRtcAhead() != nil {
		rows = append(rows, []string{"battery-backed clock ahead", span(m.GetRtcAhead())})
	}
	return rows
}
