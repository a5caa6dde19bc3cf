package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/sysext"
)

// extensionFile is an extension's image in the store.
type extensionFile struct {
	name, path string
	size       int64
}

// maxUnpacked bounds the programs taken from one archive, which are in memory
// while their extension is made, in bytes.
const maxUnpacked = 1 << 30

// allExtensions makes and examines the extensions of the roles whose images are
// among the targets, so that a bad one is found before any image is made.
func (r *run) allExtensions(ctx context.Context, missing []target) (map[string][]extensionFile, error) {
	out := map[string][]extensionFile{}
	for _, role := range r.in.Roles {
		if !slices.ContainsFunc(missing, func(t target) bool { return t.role == role.Name }) {
			continue
		}
		of, err := r.roleExtensions(ctx, role)
		if err != nil {
			return nil, fmt.Errorf("building role %s: %w", role.Name, err)
		}
		out[role.Name] = of
	}
	return out, nil
}

// roleExtensions makes and examines the extensions of one role, sorted by name.
func (r *run) roleExtensions(ctx context.Context, role Role) ([]extensionFile, error) {
	var out []extensionFile
	var all []sysext.Contents
	add := func(name, path string, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		c, err := sysext.Inspect(path, name, sysext.Host{Arch: r.in.Arch, Flatcar: r.in.Flatcar})
		if err != nil {
			return err
		}
		if c.Unread != "" {
			r.warn("extension %s: %s", name, c.Unread)
		}
		if err := r.judgeModules(c); err != nil {
			return err
		}
		all = append(all, c)
		out = append(out, extensionFile{name: name, path: path, size: st.Size()})
		return nil
	}
	// The user's first: what is wrong with them is said before ours are made.
	for _, e := range role.Extensions {
		if slices.Contains(sysext.OurNames(), e.Name) {
			return nil, fmt.Errorf("adding extension %s: that name is ours; rename yours (its extension-release too)", e.Name)
		}
		file, err := r.in.Store.Path(e.Blob.SHA256), error(nil)
		if e.Recipe != nil {
			file, err = r.recipeExtension(ctx, e)
		}
		if err := add(e.Name, file, err); err != nil {
			return nil, err
		}
	}
	file, err := r.agentExtension(ctx)
	if err := add(sysext.AgentName, file, err); err != nil {
		return nil, err
	}
	file, err = r.kubernetesExtension(ctx)
	if err := add(sysext.KubernetesName, file, err); err != nil {
		return nil, err
	}
	if role.ControlPlane {
		file, err = r.etcdExtension(ctx)
		if err := add(sysext.EtcdName, file, err); err != nil {
			return nil, err
		}
	}
	if len(r.in.Images) > 0 {
		file, err = r.imagesExtension(ctx)
		if err := add(sysext.ImagesName, file, err); err != nil {
			return nil, err
		}
	}
	file, err = r.runtimesExtension(ctx, role)
	if file != "" || err != nil {
		if err := add(sysext.RuntimesName, file, err); err != nil {
			return nil, err
		}
	}
	if err := sysext.Conflicts(all); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b extensionFile) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// warn keeps a sentence for the result, once.
func (r *run) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); !slices.Contains(r.warnings, w) {
		r.warnings = append(r.warnings, w)
	}
}

func (r *run) agentExtension(ctx context.Context) (string, error) {
	return r.extension(ctx, sysext.AgentName, "", []lock.Blob{r.in.Agent}, func() (sysext.Extension, error) {
		c, err := r.content(r.in.Agent)
		if err != nil {
			return sysext.Extension{}, err
		}
		return sysext.Agent(c)
	})
}

func (r *run) kubernetesExtension(ctx context.Context) (string, error) {
	blobs := []lock.Blob{r.in.Kubeadm, r.in.Kubelet, r.in.Kubectl, r.in.CNIArchive}
	return r.extension(ctx, sysext.KubernetesName, "", blobs, func() (sysext.Extension, error) {
		var c [3]fstree.Content
		for i, b := range blobs[:3] {
			var err error
			if c[i], err = r.content(b); err != nil {
				return sysext.Extension{}, err
			}
		}
		plugins, err := r.members(r.in.CNIArchive, func(m sysext.Member) bool { return m.Mode&0o100 != 0 })
		if err != nil {
			return sysext.Extension{}, err
		}
		if len(plugins) == 0 {
			return sysext.Extension{}, fmt.Errorf("unpacking %s: %w: it has no executable files", r.in.CNIArchive.Source, errNoPrograms)
		}
		return sysext.Kubernetes(c[0], c[1], c[2], plugins)
	})
}

func (r *run) etcdExtension(ctx context.Context) (string, error) {
	return r.extension(ctx, sysext.EtcdName, "", []lock.Blob{r.in.EtcdArchive}, func() (sysext.Extension, error) {
		want := sysext.EtcdPrograms()
		programs, err := r.members(r.in.EtcdArchive, func(m sysext.Member) bool { return slices.Contains(want, path.Base(m.Path)) })
		if err != nil {
			return sysext.Extension{}, err
		}
		if missing := sysext.Missing(want, programs); len(missing) > 0 {
			return sysext.Extension{}, fmt.Errorf("unpacking %s: %w: %s", r.in.EtcdArchive.Source, errNoPrograms, strings.Join(missing, ", "))
		}
		return sysext.Etcd(programs)
	})
}

func (r *run) imagesExtension(ctx context.Context) (string, error) {
	return r.extension(ctx, sysext.ImagesName, "", r.in.Images, func() (sysext.Extension, error) {
		var archives []sysext.File
		for _, b := range r.in.Images {
			c, err := r.content(b)
			if err != nil {
				return sysext.Extension{}, err
			}
			name := strings.TrimPrefix(string(b.ID), lock.ImagesPrefix)
			archives = append(archives, sysext.File{Name: strings.ReplaceAll(name, "/", "_") + ".tar", Content: c})
		}
		return sysext.Images(archives)
	})
}

// extension makes an extension's image, once for the same inputs and the same how.
func (r *run) extension(ctx context.Context, name, how string, blobs []lock.Blob, compose func() (sysext.Extension, error)) (string, error) {
	var inputs []store.Input
	for _, b := range blobs {
		inputs = append(inputs, input(b))
	}
	key := recipe([]string{"extension 2", r.in.Builder, r.in.Arch, name, how, r.time.String()}, inputs)
	return r.in.Store.Derived(ctx, key, func(f *os.File) error {
		r.obs.step("making extension %s", name)
		e, err := compose()
		if err != nil {
			return err
		}
		size, err := sysext.Write(f, e, r.in.Arch, r.time)
		if err != nil {
			return err
		}
		return f.Truncate(size)
	})
}

func (r *run) content(b lock.Blob) (fstree.Content, error) {
	return fstree.FromFile(r.in.Store.Path(b.SHA256))
}

// members reads the chosen files of an archive into memory.
func (r *run) members(b lock.Blob, choose func(sysext.Member) bool) ([]sysext.File, error) {
	f, err := os.Open(r.in.Store.Path(b.SHA256))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []sysext.File
	var total int64
	err = sysext.Unpack(f, func(m sysext.Member, content io.Reader) error {
		if m.Kind != sysext.Regular || !choose(m) {
			return nil
		}
		if total += m.Size; total > maxUnpacked {
			return fmt.Errorf("its files have more than %d bytes in all", int64(maxUnpacked))
		}
		c := make(fstree.Bytes, m.Size)
		if _, err := io.ReadFull(content, c); err != nil {
			return err
		}
		if err := r.checkArch("it", elfArch(c)); err != nil {
			return err
		}
		out = append(out, sysext.File{Name: path.Base(m.Path), Content: c, ModTime: m.ModTime})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", b.Source, err)
	}
	return out, nil
}
