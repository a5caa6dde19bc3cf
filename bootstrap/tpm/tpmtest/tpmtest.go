// Package tpmtest runs software TPMs for tests: swtpm (libtpms), another hand's TPM
// 2.0, each with a state of its own in a directory.
package tpmtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// TPM is a software TPM that is switched on.
type TPM struct {
	// Root is a directory for a host.Host, with the TPM in the device's place.
	Root string

	t      *testing.T
	state  string
	socket string
	run    *exec.Cmd
	output bytes.Buffer
}

// New switches a new TPM on, until the test ends. root is a host's directory; empty
// for one of its own.
func New(t *testing.T, root string) *TPM {
	t.Helper()
	if root == "" {
		root = t.TempDir()
	}
	v := &TPM{Root: root, t: t, state: t.TempDir()}
	// A socket's name has room for 107 bytes, a test's directory often has not.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v.socket = filepath.Join(dir, "tpm")
	device := filepath.Join(root, host.TPMPath)
	if err := os.MkdirAll(filepath.Dir(device), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(v.socket, device); err != nil {
		t.Fatal(err)
	}
	v.On()
	t.Cleanup(v.Off)
	return v
}

// Clone switches another TPM on, with a copy of this one's state: what somebody gets
// who copies a virtual machine. This one must be off.
func (v *TPM) Clone(root string) *TPM {
	v.t.Helper()
	c := New(v.t, root)
	c.Off()
	c.Restore(v.Save())
	c.On()
	return c
}

// Save returns the state; the TPM must be off.
func (v *TPM) Save() []byte {
	v.t.Helper()
	b, err := os.ReadFile(filepath.Join(v.state, "tpm2-00.permall"))
	if err != nil {
		v.t.Fatal(err)
	}
	return b
}

// Restore sets the state; the TPM must be off.
func (v *TPM) Restore(state []byte) {
	v.t.Helper()
	if err := os.WriteFile(filepath.Join(v.state, "tpm2-00.permall"), state, 0o600); err != nil {
		v.t.Fatal(err)
	}
}

// On starts the TPM, as a machine's power does.
func (v *TPM) On() {
	v.t.Helper()
	if err := os.Remove(v.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		v.t.Fatal(err)
	}
	l, err := net.Listen("unix", v.socket)
	if err != nil {
		v.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		v.t.Fatal(err)
	}
	v.start([]*os.File{f}, "--server", "type=unixio,fd=3", "--flags", "not-need-init,startup-clear")
	// It alone listens: whoever calls one that has ended must not wait for an answer.
	if err := errors.Join(l.Close(), f.Close()); err != nil {
		v.t.Fatal(err)
	}
	// It has counted this start when it answers.
	v.Do(func(t transport.TPM) error {
		_, err := tpm2.GetRandom{BytesRequested: 8}.Execute(t)
		return err
	})
}

// ForGuest hands the TPM over to a virtual machine, which switches it on and off. It
// returns the control socket for QEMU's tpmdev.
func (v *TPM) ForGuest() string {
	v.t.Helper()
	v.Off()
	v.start(nil, "--ctrl", "type=unixio,path="+v.socket)
	return v.socket
}

func (v *TPM) start(files []*os.File, args ...string) {
	v.t.Helper()
	v.output.Reset()
	v.run = exec.Command("swtpm", append([]string{"socket", "--tpm2", "--tpmstate", "dir=" + v.state}, args...)...)
	v.run.ExtraFiles, v.run.Stdout, v.run.Stderr = files, &v.output, &v.output
	v.run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nothing outlives a test that is killed
	if err := v.run.Start(); err != nil {
		v.t.Fatalf("starting a software TPM: %v; apt-get install swtpm", err)
	}
}

// Off takes the power away.
func (v *TPM) Off() {
	if v.run == nil {
		return
	}
	_ = v.run.Process.Kill()
	_ = v.run.Wait()
	v.run = nil
	if v.t.Failed() && v.output.Len() > 0 {
		v.t.Logf("swtpm: %s", v.output.Bytes())
	}
}

// Open connects to it.
func (v *TPM) Open() (io.ReadWriteCloser, error) {
	return (&host.Host{Root: v.Root}).TPM()
}

// EK names it as cluster.yaml's tpm.ek does.
func (v *TPM) EK() string {
	v.t.Helper()
	claim, err := v.Device().Claim()
	if err != nil {
		v.t.Fatal(err)
	}
	ek, err := claim.Endorsement()
	if err != nil {
		v.t.Fatal(err)
	}
	return ek
}

// Device is it as the agent sees it.
func (v *TPM) Device() *tpm.Device { return &tpm.Device{Open: v.Open} }

// Do runs commands.
func (v *TPM) Do(f func(t transport.TPM) error) {
	v.t.Helper()
	c, err := v.Open()
	if err != nil {
		v.t.Fatal(err)
	}
	defer c.Close()
	if err := f(transport.FromReadWriter(c)); err != nil {
		v.t.Fatal(err)
	}
}

// Measure extends a register, as firmware does with what it starts next.
func (v *TPM) Measure(pcr uint32, digest [32]byte) {
	v.t.Helper()
	v.Do(func(t transport.TPM) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("extending register %d: %w", pcr, err)
		}
		return nil
	})
}
