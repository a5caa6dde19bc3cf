package host_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
)

const varFile = "/sys/firmware/efi/efivars/Boot0001-8be4df61-93ca-11d2-aa0d-00e098032b8c"

func TestFirmwareVariablesAreFilesWithAttributes(t *testing.T) {
	t.Parallel()
	n := hosttest.New(t)
	put(t, n.Host, map[string]string{
		"/sys/firmware/efi/efivars/BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x07\x00\x00\x00\x01\x00",
		"/sys/firmware/efi/efivars/BootOrder-8108ac4e-9f11-4d59-850e-e21a522c59b2": "not of UEFI itself",
	})
	v, ok, err := n.EFIVariables(context.Background())
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if got, err := v.Read("BootOrder"); err != nil || string(got) != "\x01\x00" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := v.Read("Boot0001"); !errors.Is(err, fs.ErrNotExist) || err.Error()[:46] != "reading the firmware's variable Boot0001: open" {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"longer", "short"} {
		if err := v.Write("Boot0001", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := n.ReadFile(varFile); err != nil || string(got) != "\x07\x00\x00\x00"+want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if got, err := v.Names(); err != nil || !slices.Equal(got, []string{"Boot0001", "BootOrder"}) {
		t.Errorf("got %v, %v", got, err)
	}
	for range 2 {
		if err := v.Delete("Boot0001"); err != nil {
			t.Fatal(err)
		}
	}
	// What the kernel leaves of a write that the firmware refused.
	put(t, n.Host, map[string]string{varFile: ""})
	if _, err := v.Read("Boot0001"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if ran := n.Ran(); len(ran) != 0 {
		t.Errorf("it ran %v", ran)
	}
}

func TestFirmwareVariablesAreMountedWhereNobodyDid(t *testing.T) {
	t.Parallel()
	n := hosttest.New(t)
	if _, ok, err := n.EFIVariables(context.Background()); ok || err != nil {
		t.Errorf("a BIOS machine has variables: %v, %v", ok, err)
	}
	if err := n.MkdirAll("/sys/firmware/efi/efivars", 0o755); err != nil {
		t.Fatal(err)
	}
	n.Program("mount", func(host.Command) ([]byte, error) {
		put(t, n.Host, map[string]string{varFile: "\x07\x00\x00\x00x"})
		return nil, nil
	})
	v, ok, err := n.EFIVariables(context.Background())
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if got, err := v.Read("Boot0001"); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	if want := "mount -t efivarfs -o nosuid,nodev,noexec efivarfs " + n.Root + "/sys/firmware/efi/efivars"; !slices.Equal(n.Ran(), []string{want}) {
		t.Errorf("it did not run %s", want)
	}
}
