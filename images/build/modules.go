package build

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/sysext"
)

// errNoKernel is wrapped when a file does not say which kernel it is.
var errNoKernel = errors.New("it is no Linux kernel that names its release")

// judgeModules refuses kernel modules that this release's kernel would not load, or
// that depmod has not seen: modprobe would not find them, and /usr is read-only on
// the nodes.
func (r *run) judgeModules(c sysext.Contents) error {
	var releases []string
	for _, f := range c.Files {
		release, file, ok := strings.Cut(strings.TrimPrefix(f, "usr/lib/modules/"), "/")
		if !ok || !strings.HasPrefix(f, "usr/lib/modules/") || slices.Contains(releases, release) {
			continue
		}
		if !strings.Contains(path.Base(file)+".", ".ko.") {
			continue
		}
		releases = append(releases, release)
	}
	for _, release := range releases {
		if dep := "usr/lib/modules/" + release + "/modules.dep.bin"; !slices.Contains(c.Files, dep) {
			return fmt.Errorf("examining extension %s: it holds kernel modules and no %s: run depmod over them and the release's own, and pack what it writes", c.Name, dep)
		}
		kernel, err := kernelRelease(r.in.Store.Path(r.in.PXEKernel.SHA256))
		if errors.Is(err, errNoKernel) {
			r.warn("extension %s: its kernel modules are for %s; whether Flatcar %s has that kernel was not examined: %v", c.Name, release, r.in.Flatcar, err)
			continue
		}
		if err != nil {
			return err
		}
		if kernel != release {
			return fmt.Errorf("examining extension %s: its kernel modules are for %s, the kernel of Flatcar %s is %s", c.Name, release, r.in.Flatcar, kernel)
		}
	}
	return nil
}

// kernelRelease reads which kernel an x86 bzImage is (Linux,
// Documentation/arch/x86/boot.rst: kernel_version at 0x20e), as uname -r says it.
func kernelRelease(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 64<<10)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	head = head[:n]
	if n < 0x210 || string(head[0x202:0x206]) != "HdrS" {
		return "", fmt.Errorf("%s: %w", name, errNoKernel)
	}
	at := 0x200 + int(binary.LittleEndian.Uint16(head[0x20e:]))
	if at == 0x200 || at >= n {
		return "", fmt.Errorf("%s: %w", name, errNoKernel)
	}
	text, _, _ := bytes.Cut(head[at:], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	if release == "" || len(release) > 64 {
		return "", fmt.Errorf("%s: %w", name, errNoKernel)
	}
	return release, nil
}
