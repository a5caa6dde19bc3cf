// Package guestinfo reads the variables that VMware's hypervisors keep for a virtual machine
// (guestinfo.* of its advanced settings, and what vSphere makes of an OVF's properties), by the
// I/O port that VMware's tools speak through; the protocol is that of vmw-guestinfo, which
// Ignition uses.
//
// It belongs into a process of its own, which bootstrapd is when it is started with [Verb]: the
// port is opened for the whole thread, and where a hypervisor has closed it, the processor ends
// the program that speaks to it.
//
// It writes no variable, and reads those alone that bootstrap/platform understands.
package guestinfo

import (
	"encoding/json"
	"fmt"
	"io"
)

// Verb is the argument with which bootstrapd prints the variables.
const Verb = "guestinfo"

// The most of each kind that are asked for. VMware itself keeps a few hundred.
const maxCards, maxEach = 16, 16

// Print writes the variables as a JSON object of their names, without the word guestinfo, and
// values; an empty one outside of VMware.
func Print(w io.Writer) error {
	vars, err := read(open)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(vars)
}

// getter returns a variable; empty is for none.
type getter func(name string) (string, error)

// read asks for what there may be. open says nil where this is no VMware.
func read(open func() (getter, error)) (map[string]string, error) {
	vars := map[string]string{}
	get, err := open()
	if err != nil || get == nil {
		return vars, err
	}
	ask := func(format string, a ...any) bool {
		name := fmt.Sprintf(format, a...)
		var value string
		if err == nil {
			if value, err = get(name); err != nil {
				err = fmt.Errorf("reading guestinfo.%s: %w", name, err)
			}
		}
		if value != "" {
			vars[name] = value
		}
		return value != ""
	}
	for _, name := range []string{"imagectl.node", "ovfEnv", "metadata", "metadata.encoding", "hostname"} {
		ask("%s", name)
	}
	for _, kind := range []string{"dns.server", "dns.domain"} {
		for i := 0; i < maxEach && ask("%s.%d", kind, i); i++ {
		}
	}
	for i, found := 0, true; found && i < maxCards; i++ {
		found = false
		for _, k := range []string{"name", "mac", "dhcp"} {
			found = ask("interface.%d.%s", i, k) || found
		}
		for a := 0; a < maxEach && ask("interface.%d.ip.%d.address", i, a); a++ {
			found = true
		}
		for r := 0; r < maxEach; r++ {
			via := ask("interface.%d.route.%d.gateway", i, r)
			if to := ask("interface.%d.route.%d.destination", i, r); !via && !to {
				break
			}
			found = true
		}
	}
	return vars, err
}
