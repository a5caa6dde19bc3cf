package build

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/medium"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/uki"
)

// Medium is what the installer has besides the kernel and cpio of PXE when it comes
// as an ISO image, or as the program in there that UEFI starts.
type Medium struct {
	// ConfigIgn goes into Flatcar's OEM directory.
	ConfigIgn []byte
	// Args are the kernel's arguments.
	Args []string
	// Stub is systemd's, for UEFI.
	Stub lock.Blob
	// ISOLINUX, LDLINUX and MBR are for BIOS; zero when only UEFI shall boot it.
	ISOLINUX, LDLINUX, MBR lock.Blob
	// Certificate says who signs for Secure Boot, in DER form; nil for nobody.
	Certificate []byte
	// Signer has its key. Nothing else depends on the key, so it may be nil where
	// nothing is made that is signed.
	Signer uki.Signer
}

func (m *Medium) blobs() []lock.Blob {
	b := []lock.Blob{m.Stub}
	if m.ISOLINUX.ID != "" {
		b = append(b, m.ISOLINUX, m.LDLINUX, m.MBR)
	}
	return b
}

// mediumTargets are the installer's two forms, where there is what boots them.
func (r *run) mediumTargets() []target {
	m := r.in.Medium
	if m == nil {
		return nil
	}
	return []target{
		r.mediumTarget("-installer.iso", store.ISO, SetISO, m.blobs(), medium.New),
		r.mediumTarget("-installer.efi", store.UKI, SetUKI, []lock.Blob{m.Stub}, func(o medium.Options) (fstree.Content, error) {
			return medium.Program(o)
		}),
	}
}

func (r *run) mediumTarget(suffix string, format store.Format, set Set, blobs []lock.Blob, lay func(medium.Options) (fstree.Content, error)) target {
	m := r.in.Medium
	inputs := []store.Input{input(r.in.PXEKernel), input(r.in.PXEInitrd), bytesInput("rendered/medium.ign", m.ConfigIgn)}
	for _, b := range blobs {
		inputs = append(inputs, input(b))
	}
	if m.Certificate != nil {
		inputs = append(inputs, bytesInput("rendered/secureboot.cer", m.Certificate))
	}
	slices.SortFunc(inputs, func(a, b store.Input) int { return strings.Compare(string(a.ID), string(b.ID)) })
	words := append([]string{"medium 1", r.in.Builder, r.in.Cluster, r.in.Arch, r.time.String()}, m.Args...)
	t := target{name: r.in.Cluster + suffix, format: format, sets: []Set{set}, inputs: inputs, recipe: recipe(words, inputs)}
	t.make = func(ctx context.Context) error {
		a, err := r.writeMedium(ctx, t, lay)
		if err != nil {
			return spaceError{need: r.in.PXEKernel.Size + r.in.PXEInitrd.Size, err: fmt.Errorf("building %s: %w", filepath.Join(r.in.Out, t.name), err)}
		}
		r.made[t.name] = a
		return nil
	}
	return t
}

func (r *run) writeMedium(ctx context.Context, t target, lay func(medium.Options) (fstree.Content, error)) (artefact, error) {
	r.obs.step("making %s", t.name)
	o, err := r.mediumOptions(ctx, t.format == store.ISO)
	if err != nil {
		return artefact{}, err
	}
	content, err := lay(o)
	if err != nil {
		return artefact{}, err
	}
	src, err := content.Open()
	if err != nil {
		return artefact{}, err
	}
	defer src.Close()
	f, err := r.create(t.name)
	if err != nil {
		return artefact{}, err
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, sum, stop{ctx}), src)
	if err != nil {
		return artefact{}, err
	}
	if err := f.Sync(); err != nil {
		return artefact{}, err
	}
	return artefact{recipe: t.recipe, Artefact: store.Artefact{
		Name: t.name, Format: t.format, Size: size, SHA256: hexSum(sum), Inputs: t.inputs,
	}}, nil
}

// stop ends a copy when its context ends.
type stop struct{ ctx context.Context }

func (s stop) Write(p []byte) (int, error) { return len(p), s.ctx.Err() }

func (r *run) mediumOptions(ctx context.Context, bios bool) (medium.Options, error) {
	m := r.in.Medium
	o := medium.Options{
		Name: "imagectl installer of " + r.in.Cluster, Label: "IMAGECTL", Arch: r.in.Arch,
		OEM: new(fstree.Tree), Args: m.Args, ModTime: r.time, Signer: m.Signer,
	}
	if err := o.OEM.AddFile("config.ign", 0o644, fstree.Bytes(m.ConfigIgn)); err != nil {
		return o, err
	}
	var err error
	if o.Kernel, err = r.locked(ctx, r.in.PXEKernel); err != nil {
		return o, err
	}
	if o.Initrd, err = r.locked(ctx, r.in.PXEInitrd); err != nil {
		return o, err
	}
	if o.Stub, err = r.program(ctx, m.Stub); err != nil || !bios || m.ISOLINUX.ID == "" {
		return o, err
	}
	o.BIOS = &medium.BIOS{}
	for _, p := range []struct {
		to   *[]byte
		blob lock.Blob
	}{{&o.BIOS.Loader, m.ISOLINUX}, {&o.BIOS.Module, m.LDLINUX}, {&o.BIOS.MBR, m.MBR}} {
		if *p.to, err = r.program(ctx, p.blob); err != nil {
			return o, err
		}
	}
	return o, nil
}

// locked is an input's content, once more compared with its digest.
func (r *run) locked(ctx context.Context, b lock.Blob) (fstree.Content, error) {
	if err := r.in.Store.Verify(ctx, b.SHA256); err != nil {
		return nil, err
	}
	return fstree.FromFile(r.in.Store.Path(b.SHA256))
}

// programLimit bounds a boot program, which is held in memory, in bytes.
const programLimit = 16 << 20

func (r *run) program(ctx context.Context, b lock.Blob) ([]byte, error) {
	if b.Size > programLimit {
		return nil, fmt.Errorf("using %s: %d bytes are no boot program, it has less than %d", b.Source, b.Size, programLimit)
	}
	if err := r.in.Store.Verify(ctx, b.SHA256); err != nil {
		return nil, err
	}
	return os.ReadFile(r.in.Store.Path(b.SHA256))
}
