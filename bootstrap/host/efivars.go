package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// efivarfs is where the kernel shows the firmware's variables
	// (Documentation/filesystems/efivarfs.rst), one file each: four bytes of
	// attributes, then the content.
	efivarfs = "/sys/firmware/efi/efivars"
	// efiGlobal ends the names of those that the UEFI specification defines
	// (EFI_GLOBAL_VARIABLE, section 3.3).
	efiGlobal = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	// efiAttributes are those of boot variables: non-volatile, boot service access,
	// runtime access (section 8.2.1).
	efiAttributes = 0x00000007
	// immutable is FS_IMMUTABLE_FL of linux/fs.h.
	immutable = 0x00000010
)

// EFIVariables are the global variables of this machine's UEFI firmware. Only one
// process should write them.
type EFIVariables struct{ h *Host }

// EFIVariables gives access to the firmware's variables; ok is false on a machine
// that did not start by UEFI.
func (h *Host) EFIVariables(ctx context.Context) (v EFIVariables, ok bool, err error) {
	ok, err = h.Exists(path.Dir(efivarfs))
	if err != nil || !ok {
		return EFIVariables{}, false, err
	}
	v = EFIVariables{h: h}
	names, err := v.Names()
	if err != nil || len(names) > 0 {
		return v, true, err
	}
	// Firmware without a variable there is none. systemd mounts this, but cannot
	// where the initrd came without the module.
	_, err = h.Run(ctx, Command{Argv: []string{"mount", "-t", "efivarfs", "-o", "nosuid,nodev,noexec", "efivarfs", h.Path(efivarfs)}})
	return v, true, err
}

func (v EFIVariables) file(name string) string { return path.Join(efivarfs, name) + efiGlobal }

// Names returns the names of all there are.
func (v EFIVariables) Names() ([]string, error) {
	files, err := v.h.Glob(efivarfs + "/*" + efiGlobal)
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(path.Base(f), efiGlobal)
	}
	return files, nil
}

// Read returns a variable's content; the error wraps fs.ErrNotExist when there is
// none of that name.
func (v EFIVariables) Read(name string) ([]byte, error) {
	b, err := v.h.ReadFile(v.file(name))
	if err == nil && len(b) < 4 {
		// What a refused Write leaves: a file whose variable the firmware never saw.
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("reading the firmware's variable %s: %w", name, err)
	}
	return b[4:], nil
}

// Write makes or replaces a variable.
func (v EFIVariables) Write(name string, content []byte) error {
	if err := v.write(v.file(name), content); err != nil {
		return fmt.Errorf("writing the firmware's variable %s: %w", name, err)
	}
	return nil
}

func (v EFIVariables) write(file string, content []byte) error {
	if err := v.makeMutable(file); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE
	if v.h.Root != "" {
		// One write replaces a variable as a whole; a file that stands in for it has
		// to be emptied first.
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(v.h.Path(file), flags, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(binary.LittleEndian.AppendUint32(nil, efiAttributes), content...))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Delete removes a variable; that it is gone already is no error.
func (v EFIVariables) Delete(name string) error {
	err := v.makeMutable(v.file(name))
	if err == nil {
		err = v.h.Remove(v.file(name))
	}
	if err != nil {
		return fmt.Errorf("deleting the firmware's variable %s: %w", name, err)
	}
	return nil
}

// makeMutable clears the flag by which the kernel keeps "rm -rf" from breaking
// machines.
func (v EFIVariables) makeMutable(file string) error {
	f, err := os.Open(v.h.Path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a file system without such flags
	} else if err != nil {
		return fmt.Errorf("reading its flags: %w", err)
	}
	if flags&immutable == 0 {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable); err != nil {
		return fmt.Errorf("clearing its immutable flag: %w", err)
	}
	return nil
}
