package build

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/sysext"
	"github.com/imagectl/imagectl/images/upstream"
)

// recipeExtension makes an extension by its recipe.
func (r *run) recipeExtension(ctx context.Context, e Extension) (string, error) {
	path, err := r.extension(ctx, e.Name, "recipe "+e.Recipe.Name+" "+e.Recipe.Digest, e.Inputs, func() (sysext.Extension, error) {
		spool, err := os.CreateTemp(r.tmp, "unpacked-")
		if err != nil {
			return sysext.Extension{}, err
		}
		defer spool.Close()
		c := composer{tree: &fstree.Tree{}, arch: r.in.Arch, spool: spool}
		for i, in := range e.Recipe.Inputs {
			if err := c.add(ctx, in, r.in.Store.Path(e.Inputs[i].SHA256)); err != nil {
				return sysext.Extension{}, fmt.Errorf("taking input %s from %s: %w", in.Name, e.Inputs[i].Source, err)
			}
		}
		return c.finish(e.Name, *e.Recipe)
	})
	if err != nil {
		return "", fmt.Errorf("making extension %s by recipe %s: %w", e.Name, e.Recipe.Name, err)
	}
	return path, nil
}

// composer collects what goes into an extension. Unpacked files are in spool, one
// behind the other, since they may be larger than memory.
type composer struct {
	tree  *fstree.Tree
	arch  string
	spool *os.File
	end   int64
}

// spooled is a piece of a file.
type spooled struct {
	path         string
	offset, size int64
}

// Size implements fstree.Content.
func (s spooled) Size() int64 { return s.size }

// Open implements fstree.Content.
func (s spooled) Open() (io.ReadCloser, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, s.offset, s.size), f}, nil
}

func (c *composer) add(ctx context.Context, in upstream.Input, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	found := map[string]bool{}
	err = sysext.Unpack(f, func(m sysext.Member, content io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if in.Tree {
			found["usr"] = true
			return c.whole(m, content)
		}
		for _, t := range in.Take {
			ok, err := path.Match(t.Member, m.Path)
			if err != nil {
				return err
			}
			if ok && m.Kind == sysext.Regular {
				found[t.Member] = true
				return c.take(m, content, t)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, t := range in.Take {
		if !found[t.Member] {
			return fmt.Errorf("%w: it has no %s", errNoPrograms, t.Member)
		}
	}
	if in.Tree && !found["usr"] {
		return errors.New("the archive is empty")
	}
	return nil
}

// keep spools content.
func (c *composer) keep(m sysext.Member, content io.Reader) (spooled, error) {
	n, err := io.Copy(c.spool, content)
	if err == nil && n != m.Size {
		err = io.ErrUnexpectedEOF
	}
	s := spooled{path: c.spool.Name(), offset: c.end, size: n}
	c.end += n
	return s, err
}

// take takes a member to a directory. What the recipe names must be a program for
// this architecture; what only matches a pattern may be anything else too.
func (c *composer) take(m sysext.Member, content io.Reader, t upstream.Take) error {
	s, err := c.keep(m, content)
	if err != nil {
		return err
	}
	if err := c.fits(s); err != nil && (t.Member == m.Path || !errors.Is(err, errNoProgram)) {
		return err
	}
	e := fstree.Entry{Path: path.Join(t.To, path.Base(m.Path)), Type: fstree.File, Mode: 0o755, Content: s, ModTime: m.ModTime}
	if t.Member != m.Path && m.Mode&0o100 == 0 {
		e.Mode = 0o644
	}
	return c.tree.Add(e)
}

var errNoProgram = errors.New("it is no program")

// fits is errNoProgram for what is neither a program of some processor nor a script.
func (c *composer) fits(s spooled) error {
	head := make([]byte, 20)
	n, err := c.spool.ReadAt(head[:min(len(head), int(s.size))], s.offset)
	if err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(string(head), "#!"):
		return nil
	case n < len(head) || string(head[:4]) != elf.ELFMAG:
		return fmt.Errorf("%w: it begins with %q", errNoProgram, head[:min(n, 8)])
	}
	want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[c.arch]
	if got := elf.Machine(head[18]) | elf.Machine(head[19])<<8; got != want {
		return fmt.Errorf("it is a program for %s, the machines are %s", got, c.arch)
	}
	return nil
}

// whole takes a member as it is. Everything belongs to root, whoever packed it.
func (c *composer) whole(m sysext.Member, content io.Reader) error {
	if m.Path != "usr" && !strings.HasPrefix(m.Path, "usr/") {
		if m.Kind == sysext.Directory {
			return nil
		}
		return errors.New("it is outside usr/, and only that is merged; pack it with tar -C DIRECTORY -czf x.tar.gz usr")
	}
	e := fstree.Entry{Path: m.Path, Mode: m.Mode, ModTime: m.ModTime}
	switch m.Kind {
	case sysext.Directory:
		// Some other owner's 0700 would hide a directory of the system's.
		e.Mode |= 0o555
	case sysext.Symlink:
		e.Type, e.Link, e.Mode = fstree.Symlink, m.Link, 0o777
	case sysext.HardLink:
		first, ok := c.tree.Lookup(m.Link)
		if !ok || first.Type != fstree.File {
			return fmt.Errorf("it is a link to %s, which is no file before it", m.Link)
		}
		e.Type, e.Content = fstree.File, first.Content
	default:
		s, err := c.keep(m, content)
		if err != nil {
			return err
		}
		e.Type, e.Content = fstree.File, s
	}
	err := c.tree.Add(e)
	if m.Kind == sysext.Directory && errors.Is(err, fstree.ErrExists) {
		return nil // of a second archive too
	}
	return err
}

// finish adds what is the recipe's own and looks for what it needs.
func (c *composer) finish(name string, r upstream.Recipe) (sysext.Extension, error) {
	for _, f := range r.Files {
		if err := c.tree.AddFile(f.Path, 0o644, fstree.Bytes(f.Content)); err != nil {
			return sysext.Extension{}, err
		}
	}
	for _, pattern := range r.Needs {
		if !slices.ContainsFunc(c.tree.Entries(), func(e fstree.Entry) bool {
			ok, err := path.Match(pattern, e.Path)
			return ok && err == nil
		}) {
			return sysext.Extension{}, fmt.Errorf("%w: nothing in it is %s", errNoPrograms, pattern)
		}
	}
	return sysext.FromTree(name, c.tree, r.Uphold)
}

// runtimesExtension configures containerd for the runtimes of a role's extensions.
// It is empty when they have none.
func (r *run) runtimesExtension(ctx context.Context, role Role) (string, error) {
	var runtimes []upstream.Runtime
	for _, e := range role.Extensions {
		if e.Recipe != nil {
			runtimes = append(runtimes, e.Recipe.Runtimes...)
		}
	}
	if len(runtimes) == 0 {
		return "", nil
	}
	config, err := upstream.ContainerdConfig(runtimes)
	if err != nil {
		return "", err
	}
	return r.extension(ctx, sysext.RuntimesName, config, []lock.Blob{}, func() (sysext.Extension, error) {
		tree := &fstree.Tree{}
		for at, content := range map[string]string{upstream.ContainerdConfigPath: config, upstream.ContainerdDropInPath: upstream.ContainerdDropIn()} {
			if err := tree.AddFile(at, 0o644, fstree.Bytes(content)); err != nil {
				return sysext.Extension{}, err
			}
		}
		return sysext.FromTree(sysext.RuntimesName, tree, nil)
	})
}
