package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/store"
)

func newRun(g *globals) *cobra.Command {
	var out string
	var printOnly bool
	var t trial
	cmd := &cobra.Command{
		Use:   "run ROLE|NAME|FILE",
		Short: "Boot what was built in a virtual machine",
		Long: "Boot an image in QEMU with its serial console on this terminal; it shows what the\n" +
			"role's kernelArgs send there (console=ttyS0). ROLE and NAME are looked up in\n" +
			"OUT/manifest.json. Nothing that the machine writes is kept, and the image is not\n" +
			"changed. Ctrl-A X ends it; Ctrl-C goes to the machine.",
		Example: "  imagectl run worker\n  imagectl run worker --firmware uefi --memory 4096",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("run takes one image, got %d; see %s --help", len(args), cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.check(); err != nil {
				return err
			}
			var err error
			if t.Image, err = findImage(out, args[0]); err != nil {
				return err
			}
			argv, how, err := qemuArgs(t, thisHost())
			if err != nil {
				return err
			}
			if printOnly {
				_, err := fmt.Fprintln(g.stdio.Out, shellQuoted(argv))
				return err
			}
			fmt.Fprintf(g.stdio.Err, "booting %s: %s\nCtrl-A X ends it; nothing is kept\n", t.Image, how)
			// QEMU takes this process's place, so that the terminal and its signals are
			// QEMU's alone.
			return fmt.Errorf("starting %s: %w", argv[0], syscall.Exec(argv[0], argv, os.Environ()))
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "out", "output directory of imagectl build")
	cmd.Flags().StringVar(&t.Firmware, "firmware", "bios", "bios or uefi")
	cmd.Flags().StringVar(&t.Accel, "accel", "auto", "kvm, tcg (emulation), or auto: kvm where it works")
	cmd.Flags().IntVar(&t.MemoryMiB, "memory", 2048, "memory in MiB")
	cmd.Flags().IntVar(&t.CPUs, "cpus", 2, "processors")
	cmd.Flags().BoolVar(&printOnly, "print", false, "print the command instead of running it")
	return cmd
}

// check refuses flags that QEMU would explain badly.
func (t trial) check() error {
	switch {
	case t.Firmware != "bios" && t.Firmware != "uefi":
		return usageError{fmt.Errorf("firmware %q is not known; bios and uefi are", t.Firmware)}
	case t.Accel != "auto" && t.Accel != "kvm" && t.Accel != "tcg":
		return usageError{fmt.Errorf("accelerator %q is not known; auto, kvm and tcg are", t.Accel)}
	case t.MemoryMiB < 256:
		return usageError{fmt.Errorf("memory of %d MiB is too little; 256 is the least", t.MemoryMiB)}
	case t.CPUs < 1:
		return usageError{fmt.Errorf("%d processors are too few; 1 is the least", t.CPUs)}
	}
	return nil
}

// findImage is the absolute path of what a person means: a role or an artefact of
// the output directory, or else a file.
func findImage(out, name string) (string, error) {
	m, err := store.ReadManifest(out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	missing := err
	a, found := choose(m, name)
	path := name
	if found {
		path = filepath.Join(out, a.Name)
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !found && missing != nil:
		return "", usageError{fmt.Errorf("%s is no file, and %w; run imagectl build", name, missing)}
	case errors.Is(err, fs.ErrNotExist) && !found:
		return "", usageError{fmt.Errorf("there is no role, artefact or file %q that boots; %s has %s", name, out, orNone(bootables(m)))}
	case err != nil:
		return "", fmt.Errorf("finding the image: %w", err)
	case !st.Mode().IsRegular():
		return "", usageError{fmt.Errorf("%s is no regular file", path)}
	case found && st.Size() != a.Size:
		return "", fmt.Errorf("%s has %d bytes, built were %d; imagectl verify says what else changed, imagectl build makes it again", path, st.Size(), a.Size)
	}
	return filepath.Abs(path)
}

// choose finds an artefact by its name, or the first of a role's that boots.
func choose(m store.Manifest, name string) (store.Artefact, bool) {
	for _, a := range m.Artefacts {
		if a.Name == name {
			return a, true
		}
	}
	if a, ok := m.Find(name, store.Raw); ok && name != "" {
		return a, true
	}
	for _, a := range m.Artefacts {
		if a.Role == name && name != "" && bootable(a.Name) {
			return a, true
		}
	}
	return store.Artefact{}, false
}

func bootables(m store.Manifest) []string {
	var names []string
	for _, a := range m.Artefacts {
		if bootable(a.Name) {
			names = append(names, a.Name)
		}
	}
	return names
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none; imagectl build --format raw makes one"
	}
	return strings.Join(names, ", ")
}

// thisHost looks at the machine that imagectl runs on.
func thisHost() host {
	h := host{
		Path: filepath.SplitList(os.Getenv("PATH")), Arch: runtime.GOARCH,
		Exists: func(path string) bool {
			st, err := os.Stat(path)
			return err == nil && st.Mode().IsRegular()
		},
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		h.KVM = err
	} else {
		f.Close()
	}
	// Without it there is no reason to believe in KVM.
	b, _ := os.ReadFile("/proc/cpuinfo")
	h.CPUInfo = string(b)
	return h
}

// shellQuoted is a command as it may be pasted into a shell.
func shellQuoted(argv []string) string {
	var out []string
	for _, a := range argv {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=,:@+", r)
		}) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}
