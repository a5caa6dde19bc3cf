package build

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/imagectl/imagectl/images/lock"
)

// errArch is wrapped when an input is for other processors than the cluster's. A
// signature is over a file's bytes and not over where it lies: a mirror that has
// them in the wrong directory is noticed here.
var errArch = errors.New("it is for other processors")

// checkArch compares what a base image or program is for with the cluster's.
func (r *run) checkArch(what, arch string) error {
	if arch == "" || arch == r.in.Arch {
		return nil
	}
	return fmt.Errorf("using %s: %w: %s, and flatcar.arch is %s", what, errArch, arch, r.in.Arch)
}

// checkPrograms looks at the programs that are inputs by themselves.
func (r *run) checkPrograms() error {
	for _, b := range []lock.Blob{r.in.Kubeadm, r.in.Kubelet, r.in.Kubectl, r.in.Agent} {
		f, err := os.Open(r.in.Store.Path(b.SHA256))
		if err != nil {
			return fmt.Errorf("reading %s: %w", b.ID, err)
		}
		head := make([]byte, elfHead)
		n, err := io.ReadFull(f, head)
		f.Close()
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("reading %s: %w", b.ID, err)
		}
		if err := r.checkArch(fmt.Sprintf("%s (%s)", b.ID, b.Source), elfArch(head[:n])); err != nil {
			return err
		}
	}
	return nil
}

// elfHead is how much elfArch needs.
const elfHead = 20

// elfArch tells by the head of an ELF file which processors it is for; "" when it
// is none or for processors that are not known here.
func elfArch(head []byte) string {
	if len(head) < elfHead || string(head[:4]) != elf.ELFMAG {
		return ""
	}
	switch elf.Machine(binary.LittleEndian.Uint16(head[18:])) {
	case elf.EM_X86_64:
		return "amd64"
	case elf.EM_AARCH64:
		return "arm64"
	}
	return ""
}
