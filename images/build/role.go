package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/btrfs"
	"github.com/imagectl/imagectl/images/disk"
	"github.com/imagectl/imagectl/images/ext4"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/store"
)

// makeRole makes a role's disk image, and from it what is asked for.
func (r *run) makeRole(ctx context.Context, role Role, extensions []extensionFile, targets []target) error {
	base, layout, err := r.openBase(ctx)
	if err != nil {
		return err
	}
	defer base.Close()
	need, err := sparse.DataBytes(base, layout.Table.Size)
	if err != nil {
		return err
	}
	for _, e := range extensions {
		need += e.size
	}
	need *= int64(1 + len(targets)) // the image, and at most as much again for each
	if err := r.writeRole(ctx, role, targets, base, layout, extensions); err != nil {
		return spaceError{need: need, err: fmt.Errorf("building %s: %w", filepath.Join(r.in.Out, r.imageName(role)), err)}
	}
	return nil
}

func (r *run) writeRole(ctx context.Context, role Role, targets []target, base *os.File, layout disk.Layout, extensions []extensionFile) error {
	keep := slices.IndexFunc(targets, func(t target) bool { return t.write == nil })
	name := r.imageName(role) + ".scratch"
	if keep >= 0 {
		name = targets[keep].name
	}
	f, err := r.create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r.obs.step("%s: copying the base image", role.Name)
	if err := sparse.Copy(ctx, f, base); err != nil {
		return err
	}
	r.obs.step("%s: writing OEM and ROOT", role.Name)
	id := r.roleID(role)
	layout, err = r.writePartitions(f, layout, role, id, extensions)
	if err != nil {
		return err
	}
	img := image{
		file: f, size: layout.Table.Size, name: r.imageName(role), arch: r.in.Arch, flatcar: r.in.Flatcar,
		modTime: r.time, uuid: uuid(id, "disk"),
	}
	if err := r.convertAll(ctx, img, targets); err != nil {
		return err
	}
	if keep < 0 {
		return os.Remove(f.Name())
	}
	return nil
}

// convertAll makes targets one after the other, since each uses all processors;
// what cannot is done meanwhile.
func (r *run) convertAll(ctx context.Context, img image, targets []target) error {
	made := make([]artefact, len(targets))
	var rawSum string
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		rawSum, err = rawSHA256(ctx, img)
		return err
	})
	g.Go(func() error {
		for i, t := range targets {
			if err := r.convert(ctx, img, t); err != nil {
				return err
			}
			g.Go(func() error {
				digest, size, err := store.HashFile(ctx, filepath.Join(r.tmp, t.name))
				made[i] = artefact{recipe: t.recipe, Artefact: store.Artefact{
					Name: t.name, Role: t.role, Format: t.format, Size: size, SHA256: digest,
					RawSize: img.size, Inputs: t.inputs,
				}}
				return err
			})
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for _, a := range made {
		a.RawSHA256 = rawSum
		r.made[a.Name] = a
	}
	return nil
}

func (r *run) convert(ctx context.Context, img image, t target) error {
	if t.write == nil {
		return img.file.Sync()
	}
	r.obs.step("%s: making %s", t.role, t.name)
	dst, err := r.create(t.name)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := t.write(ctx, dst, img); err != nil {
		return err
	}
	return dst.Sync()
}

// writePartitions replaces OEM and ROOT, and nothing else.
func (r *run) writePartitions(f *os.File, l disk.Layout, role Role, id string, extensions []extensionFile) (disk.Layout, error) {
	oem := &fstree.Tree{}
	for name, content := range map[string][]byte{"config.ign": role.ConfigIgn, "grub.cfg": role.GrubCfg} {
		if err := oem.AddFile(name, 0o644, fstree.Bytes(content)); err != nil {
			return disk.Layout{}, err
		}
	}
	root, need, err := rootTree(extensions)
	if err != nil {
		return disk.Layout{}, err
	}
	if l, err = disk.GrowRoot(f, l, need); err != nil {
		return disk.Layout{}, err
	}
	for _, p := range []disk.Partition{l.OEM, l.Root} {
		if err := sparse.Clear(f, sparse.Range{Offset: p.Offset, Length: p.Length}); err != nil {
			return disk.Layout{}, err
		}
	}
	err = btrfs.Write(io.NewOffsetWriter(f, l.OEM.Offset), l.OEM.Length, oem, btrfs.Options{
		Label: "OEM", UUID: uuid(id, "oem"), ModTime: r.time,
	})
	if err != nil {
		return disk.Layout{}, err
	}
	err = ext4.Write(io.NewOffsetWriter(f, l.Root.Offset), l.Root.Length, root, ext4.Options{
		Label: "ROOT", UUID: uuid(id, "root"), HashSeed: uuid(id, "root hash seed"), ModTime: r.time,
	})
	return l, err
}

// rootTree is what ROOT holds, and how large ROOT must be for it. Flatcar makes
// everything else at the first boot, and grows ROOT to the disk's end.
func rootTree(extensions []extensionFile) (*fstree.Tree, int64, error) {
	t := &fstree.Tree{}
	for _, dir := range []string{"boot", "usr", "oem"} {
		if err := t.AddDir(dir, 0o755); err != nil {
			return nil, 0, err
		}
	}
	var content int64
	for _, e := range extensions {
		c, err := fstree.FromFile(e.path)
		if err != nil {
			return nil, 0, err
		}
		at := "opt/extensions/" + e.name + "/" + e.name + ".raw"
		if err := t.AddFile(at, 0o644, c); err != nil {
			return nil, 0, fmt.Errorf("adding extension %s twice: %w", e.name, err)
		}
		if err := t.AddSymlink("etc/extensions/"+e.name+".raw", "/"+at); err != nil {
			return nil, 0, err
		}
		content += e.size
	}
	// Inode tables take a sixteenth (256 of every 4096 bytes), the journal at most
	// 128 MiB at these sizes, bitmaps and reserved blocks the rest. The installer
	// and the first boot need some room too.
	return t, content + content/8 + 256<<20, nil
}

// uuid derives a UUID from what went into an image, in version 8's form (RFC 9562).
func uuid(id, what string) [16]byte {
	sum := sha256.Sum256([]byte("imagectl uuid 1\n" + id + "\n" + what))
	u := [16]byte(sum[:16])
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// create makes a file among the unfinished ones, readable by everybody whatever
// the umask: serve may run as another user.
func (r *run) create(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.tmp, name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyFile makes an artefact that is a copy of a file.
func (r *run) copyFile(ctx context.Context, t target, path string) error {
	a, err := r.copied(ctx, t, path)
	if err != nil {
		var need int64
		if st, serr := os.Stat(path); serr == nil {
			need = st.Size()
		}
		return spaceError{need: need, err: fmt.Errorf("building %s: %w", filepath.Join(r.in.Out, t.name), err)}
	}
	r.made[t.name] = a
	return nil
}

func (r *run) copied(ctx context.Context, t target, path string) (artefact, error) {
	r.obs.step("copying %s", t.name)
	src, err := os.Open(path)
	if err != nil {
		return artefact{}, err
	}
	defer src.Close()
	f, err := r.create(t.name)
	if err != nil {
		return artefact{}, err
	}
	defer f.Close()
	if _, err := io.Copy(f, src); err != nil {
		return artefact{}, err
	}
	if err := f.Sync(); err != nil {
		return artefact{}, err
	}
	digest, size, err := store.HashFile(ctx, f.Name())
	if err != nil {
		return artefact{}, err
	}
	if t.verbatim && digest != t.inputs[0].SHA256 {
		return artefact{}, fmt.Errorf("%s now has sha256 %s: %w; delete it and run imagectl lock", path, digest, store.ErrDigest)
	}
	return artefact{recipe: t.recipe, Artefact: store.Artefact{Name: t.name, Role: t.role, Format: t.format, Extension: t.extension, Size: size, SHA256: digest, Inputs: t.inputs}}, nil
}
