package host

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
)

// productName is the firmware's name of the machine, as the kernel shows it.
const productName = "/sys/class/dmi/id/product_name"

// Guestinfo returns the variables that VMware keeps for this machine, without the word guestinfo
// before their names. Where the firmware names no VMware the error wraps fs.ErrNotExist. They
// are read by this program in a process of its own (package guestinfo says why).
func (h *Host) Guestinfo(ctx context.Context) (map[string]string, error) {
	name, err := h.ReadFile(productName)
	if err != nil {
		return nil, err
	}
	// cloud-init looks for the same word (DataSourceVMware.py, is_vmware_platform).
	if !strings.Contains(strings.ToLower(string(name)), "vmware") {
		return nil, fmt.Errorf("the firmware calls this machine %.60q, which is no VMware: %w", strings.TrimSpace(string(name)), fs.ErrNotExist)
	}
	out, err := h.Run(ctx, Command{Argv: []string{"/proc/self/exe", "guestinfo"}})
	if err != nil {
		return nil, err
	}
	var vars map[string]string
	if err := json.Unmarshal(out, &vars); err != nil {
		return nil, fmt.Errorf("reading what %s guestinfo printed: %w", "/proc/self/exe", err)
	}
	return vars, nil
}
