package host_test

import (
	"errors"
	"io/fs"
	"maps"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
)

func TestGuestinfoIsAskedForInVMwareOnly(t *testing.T) {
	t.Parallel()
	n := hosttest.New(t)
	answer, broken := `{"hostname": "w1"}`, error(nil)
	n.Program("/proc/self/exe", func(host.Command) ([]byte, error) { return []byte(answer), broken })
	if _, err := n.Guestinfo(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without firmware: got %v, want fs.ErrNotExist", err)
	}
	for product, vmware := range map[string]bool{"KVM\n": false, "VMware Virtual Platform\n": true, "VMware20,1\n": true, "": false} {
		if err := n.WriteFile("/sys/class/dmi/id/product_name", []byte(product), 0o444); err != nil {
			t.Fatal(err)
		}
		n.Ran()
		got, err := n.Guestinfo(t.Context())
		if vmware && (err != nil || !maps.Equal(got, map[string]string{"hostname": "w1"})) {
			t.Errorf("%q: got %v, %v", product, got, err)
		}
		if !vmware && (!errors.Is(err, fs.ErrNotExist) || n.Ran() != nil) {
			t.Errorf("%q: got %v, %v, want fs.ErrNotExist and nothing run", product, got, err)
		}
	}
	if err := n.WriteFile("/sys/class/dmi/id/product_name", []byte("VMware7,1"), 0o444); err != nil {
		t.Fatal(err)
	}
	answer = "SIGSEGV"
	if _, err := n.Guestinfo(t.Context()); err == nil || err.Error() != "reading what /proc/self/exe guestinfo printed: invalid character 'S' looking for beginning of value" {
		t.Errorf("got %v", err)
	}
	broken = errors.New("signal: segmentation fault")
	if _, err := n.Guestinfo(t.Context()); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}
