//go:build root

package bmc

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/test/ipmisim"
)

// OpenIPMI's BMC simulator judges our IPMI: another hand wrote it. Its chassis keeps power
// and boot device in files.
func TestOpenIPMIsSimulatorIsBootedFromTheNetwork(t *testing.T) {
	dir := t.TempDir()
	ipmisim.Start(t, dir, `case $1 in power|boot) echo "$2" >$1 ;; esac`)
	target := Target{Kind: IPMI, Address: ipmisim.Address, Username: ipmisim.Username, Password: ipmisim.Password, patience: 20}
	ctx := t.Context()
	var c Controller
	for try := 0; ; try++ {
		var err error
		if c, err = Open(ctx, target, Sleep); err == nil {
			break
		}
		var e *Error
		if try == 120 || !errors.As(err, &e) || e.Answer != "no answer" && !strings.Contains(e.Answer, "refused") {
			t.Fatal(err)
		}
		if err := Sleep(ctx, 500*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	defer c.Close()
	if got := c.Info().Manufacturer; got != "Supermicro" {
		t.Errorf("got manufacturer %q", got)
	}
	if err := Boot(ctx, c, Sleep, PXE, always, func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	if err := Cycle(ctx, c, Sleep); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	// An order whose answer is late is given again.
	orders := slices.Compact(strings.Split(strings.TrimSpace(string(log)), "\n"))
	if diff := cmp.Diff([]string{"boot pxe", "power 1", "power 0", "power 1"}, orders); diff != "" {
		t.Error(diff)
	}
	target.Password = "guess"
	want := "asking ipmi 127.0.0.1:6230: login: the login was refused; are bmc.username and bmc.password right, and is the account an operator at the BMC?"
	if _, err := Open(ctx, target, Sleep); err == nil || err.Error() != want {
		t.Errorf("a wrong password: got %v", err)
	}
}
