package host_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
)

func TestReadMediumMountsOnlyWhatIsAttached(t *testing.T) {
	t.Parallel()
	n := hosttest.New(t)
	n.Program("mount", func(host.Command) ([]byte, error) {
		return nil, n.WriteFile("/run/imagectl/medium/openstack/latest/user_data", []byte("hello, guest"), 0o644)
	})
	if _, err := n.ReadMedium(t.Context(), "config-2", "openstack/latest/user_data", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a medium: got %v, want fs.ErrNotExist", err)
	}
	if ran := n.Ran(); ran != nil {
		t.Errorf("without a medium it ran %v", ran)
	}
	put(t, n.Host, map[string]string{"/dev/disk/by-label/config-2": ""})
	got, err := n.ReadMedium(t.Context(), "config-2", "openstack/latest/user_data", 5)
	if err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v, want the file's first 5 bytes", got, err)
	}
	want := []string{"mount -t iso9660,vfat -o ro,nosuid,nodev,noexec " + n.Root + "/dev/disk/by-label/config-2 " + n.Root + "/run/imagectl/medium"}
	if diff := cmp.Diff(want, n.Ran()); diff != "" {
		t.Errorf("programs (-want +got):\n%s", diff)
	}
	put(t, n.Host, map[string]string{`/dev/disk/by-label/OVF\x20ENV`: ""})
	if got, err := n.ReadMedium(t.Context(), "OVF ENV", "openstack/latest/user_data", 5); err != nil || string(got) != "hello" {
		t.Errorf("with a blank in the label: got %q, %v", got, err)
	}
	if _, err := n.ReadMedium(t.Context(), "config-2", "user-data", 5); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the file: got %v, want fs.ErrNotExist", err)
	}
	if _, err := n.ReadMedium(t.Context(), "config-2", "openstack", 5); err == nil || err.Error() != "openstack on the medium config-2 is no regular file" {
		t.Errorf("a directory: got %v", err)
	}
}
