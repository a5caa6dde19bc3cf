package cli

import (
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

func newMachinesShow(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "show NAME|MAC...",
		Short: "Show what is known of a machine, and what it says about its hardware",
		Long: "Show what is known of a machine, and what it says about its hardware: processors,\n" +
			"memory, disks, network cards and the switch ports that they are plugged into (LLDP).\n" +
			"A machine that cluster.yaml does not list is named unknown-MAC.",
		Example: "  imagectl machines show cp1\n  imagectl machines show unknown-525400123456 -o json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("say which machines: their names or MAC addresses; see imagectl machines ls")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ListMachines(cmd.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
			if err != nil {
				return r.explain(err)
			}
			var found []*api.MachineView
			for _, asked := range args {
				m := machineNamed(resp.Msg.GetMachines(), asked)
				if m == nil {
					return fmt.Errorf("showing %s: there is no machine of this name or MAC address; imagectl machines ls lists them", asked)
				}
				found = append(found, m)
			}
			if f == formatJSON {
				return printMessages(g.stdio.Out, found)
			}
			for i, m := range found {
				if i > 0 {
					fmt.Fprintln(g.stdio.Out)
				}
				if err := printMachine(g.stdio.Out, time.Now(), m); err != nil {
					return err
				}
				why, err := r.operator().Why(cmd.Context(), connect.NewRequest(&api.WhyRequest{Machine: askable(m)}))
				switch {
				case connect.CodeOf(err) == connect.CodeUnimplemented || connect.CodeOf(err) == connect.CodeNotFound:
				case err != nil:
					return r.explain(err)
				default:
					printEvents(g.stdio.Out, "said by syslog:", why.Msg.GetConsole())
				}
			}
			return nil
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

// machineNamed finds a machine by its name or by one of its cards.
func machineNamed(all []*api.MachineView, asked string) *api.MachineView {
	for _, m := range all {
		if m.GetName() == asked || slices.Contains(m.GetMacs(), strings.ToLower(asked)) {
			return m
		}
	}
	return nil
}

// askable is what the boot path knows a machine by.
func askable(m *api.MachineView) string {
	if macs := m.GetMacs(); !m.GetKnown() && len(macs) > 0 {
		return macs[0]
	}
	return m.GetName()
}

func printMachine(w io.Writer, now time.Time, m *api.MachineView) error {
	f := m.GetFacts()
	fmt.Fprintf(w, "%s\n", text(m.GetName()))
	lines := [][]string{
		{"role", text(m.GetRole())},
		{"zone", text(m.GetZone())},
		{"state", strings.TrimSuffix(m.GetState()+": "+text(activity(m)), ": ")},
		{"address", text(m.GetAddress())},
		{"seen", ago(now, m.GetLastSeen())},
		{"code", m.GetPendingCode()},
		{"hardware", text(strings.TrimSpace(f.GetManufacturer() + " " + f.GetProduct()))},
		{"serial", text(f.GetSerial())},
		{"uuid", text(f.GetUuid())},
		{"firmware", text(f.GetFirmware())},
		{"system", text(strings.TrimSpace(f.GetOsVersion() + ", kernel " + f.GetKernel()))},
		{"processors", strconv.Itoa(int(f.GetCpus()))},
		{"memory", capacity(f.GetMemoryBytes())},
		{"bmc", text(controller(f.GetBmc()))},
	}
	lines = append(lines, tpmLines(m.GetTpm())...)
	for _, l := range lines {
		if empty := l[1] == "" || l[1] == "0" || l[1] == ", kernel"; !empty {
			fmt.Fprintf(w, "  %-11s %s\n", l[0], l[1])
		}
	}
	var rows [][]string
	for _, d := range f.GetDisks() {
		kind := "solid"
		switch {
		case d.GetRemovable():
			kind = "removable"
		case d.GetRotational():
			kind = "rotating"
		}
		rows = append(rows, []string{d.GetPath(), capacity(d.GetSizeBytes()), kind, d.GetModel(), d.GetSerial(), d.GetWwn()})
	}
	if err := section(w, []string{"DISK", "SIZE", "KIND", "MODEL", "SERIAL", "WWN"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, i := range f.GetInterfaces() {
		link := "down"
		if i.GetUp() {
			link = "up"
		}
		rows = append(rows, []string{i.GetName(), i.GetMac(), link, strings.Join(i.GetAddresses(), " "), neighbour(i.GetNeighbour())})
	}
	if err := section(w, []string{"CARD", "MAC", "LINK", "ADDRESSES", "PLUGGED INTO"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, p := range m.GetTpm().GetPcrs() {
		note := ""
		if p.GetChanged() {
			note = "differs from the proof before"
		}
		rows = append(rows, []string{strconv.Itoa(int(p.GetIndex())), p.GetSha256(), note})
	}
	return section(w, []string{"PCR", "SHA-256", ""}, rows)
}

// tpmLines say which TPM a machine has proven itself by; none for none.
func tpmLines(t *api.TpmView) [][]string {
	if t == nil {
		return nil
	}
	standing := "accepted"
	if !t.GetAccepted() {
		standing = "waits for an operator"
	}
	return [][]string{
		{"tpm.ek", t.GetEk()},
		{"tpm", fmt.Sprintf("%s, proven at %s, %d starts, firmware %x", standing, t.GetProvenAt().AsTime().Local().Format(time.DateTime), t.GetResets(), t.GetFirmware())},
	}
}

// controller is a BMC as the machine names it, in a few words; empty for none.
func controller(c *api.Controller) string {
	if c == nil {
		return ""
	}
	out := c.GetAddress() + " " + c.GetMac()
	if v := c.GetVlan(); v != 0 {
		out += fmt.Sprintf(" vlan %d", v)
	}
	return strings.TrimSpace(out) + ", by the machine's own word"
}

// neighbour is a switch and its port in a few words; empty for none heard.
func neighbour(n *api.Neighbour) string {
	if n == nil {
		return ""
	}
	who := n.GetSystem()
	if who == "" {
		who = n.GetChassis()
	}
	out := who + " port " + n.GetPort()
	if d := n.GetPortDescription(); d != "" && d != n.GetPort() {
		out += " (" + d + ")"
	}
	if v := n.GetVlan(); v != 0 {
		out += fmt.Sprintf(" vlan %d", v)
	}
	return out
}

// section is a table under an empty line, or nothing.
func section(w io.Writer, header []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	for _, r := range rows {
		for i := range r {
			r[i] = text(r[i])
		}
	}
	fmt.Fprintln(w)
	return table(w, header, rows)
}

// capacity is a number of bytes in the units of hardware.
func capacity(n uint64) string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{40, "TiB"}, {30, "GiB"}, {20, "MiB"}} {
		if n >= 1<<u.shift {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(uint64(1)<<u.shift), u.name)
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d bytes", n)
}
