package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/snippet"
	"github.com/imagectl/imagectl/images/bundle"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
)

func newBundle(g *globals) *cobra.Command {
	var out, cache string
	var program, asJSON bool
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Pack all that a site without internet needs into one file",
		Long: "Write one tar file that holds cluster.yaml, imagectl.lock, every file that they\n" +
			"name, every locked input, and this program. imagectl unbundle opens it at a place\n" +
			"that reaches no network; there imagectl build gives the same bytes as here. The\n" +
			"same lock, files and imagectl give the same bundle.",
		Example: "  imagectl bundle -o site.tar\n  tar tvf site.tar",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			site, l, err := g.gather()
			if err != nil {
				return err
			}
			s, err := openCache(cache)
			if err != nil {
				return err
			}
			exe := ""
			if program {
				if exe, err = os.Executable(); err != nil {
					return fmt.Errorf("finding the running program: %w; --program=false leaves it out", err)
				}
			}
			r, err := writeBundle(cmd.Context(), g, s, site, l, exe, out)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(g.stdio.Out, r)
			}
			_, err = fmt.Fprintf(g.stdio.Out, "%s: %s, %s, %s\nsha256 of its SHA256SUMS: %s\nnext: carry it over and run imagectl unbundle %s\n",
				r.File, size(r.Size), count(r.Inputs, "input"), count(r.SiteFiles, "file"), r.Sums, filepath.Base(r.File))
			return err
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "bundle.tar", "file to write")
	cmd.Flags().BoolVar(&program, "program", true, "include this imagectl")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was written as JSON")
	cacheFlag(cmd, &cache)
	return cmd
}

// bundleReport is the JSON form.
type bundleReport struct {
	File string `json:"file"`
	Size int64  `json:"size"`
	// Sums is the digest of the member SHA256SUMS.
	Sums      string `json:"sums"`
	Inputs    int    `json:"inputs"`
	SiteFiles int    `json:"siteFiles"`
}

// writeBundle fetches what the cache lacks and writes the file in one step.
func writeBundle(ctx context.Context, g *globals, s *store.Store, site bundle.Site, l lock.Lock, program, out string) (r bundleReport, err error) {
	p := newProgress(g.stdio.Err)
	defer p.close()
	for _, b := range l.Inputs {
		if _, err := release.Fetch(ctx, s, g.dir(), b, p.watch(b.ID)); err != nil {
			return r, err
		}
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing %s: %w", out, err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return r, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	r = bundleReport{File: out, Inputs: len(l.Inputs), SiteFiles: len(site.Files)}
	r.Sums, err = bundle.Write(ctx, f, s, site, program, func(what string, done, total int64) { p.step("copying "+what, done, total) })
	if err != nil {
		return r, err
	}
	st, err := f.Stat()
	if err != nil {
		return r, err
	}
	r.Size = st.Size()
	// It is to be read by others; CreateTemp's 0600 is not.
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return r, err
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return r, err
	}
	return r, syncDir(filepath.Dir(out))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// gather reads the site: cluster.yaml, its lock, and every file that they name.
// The lock must be fresh.
func (g *globals) gather() (bundle.Site, lock.Lock, error) {
	file, err := relative(g.file)
	if err != nil {
		return bundle.Site{}, lock.Lock{}, err
	}
	c := collector{files: map[string]bundle.File{}}
	spec, found := cluster.Parse(c.read, file)
	if err := g.report(found); err != nil {
		return bundle.Site{}, lock.Lock{}, err
	}
	lockFile := filepath.Join(filepath.Dir(file), lock.FileName)
	l, err := lock.Read(lockFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s is missing; run imagectl lock", lockFile)
	}
	if err != nil {
		return bundle.Site{}, lock.Lock{}, usageError{err}
	}
	_, found = plan.Resolve(spec, l, lockFile)
	if err := g.report(found); err != nil {
		return bundle.Site{}, lock.Lock{}, err
	}
	if _, err := c.read(lockFile); err != nil {
		return bundle.Site{}, lock.Lock{}, fmt.Errorf("reading lock file: %w", err)
	}
	for _, r := range spec.Roles {
		for _, s := range r.Butane {
			if err := c.embedded(s); err != nil {
				return bundle.Site{}, lock.Lock{}, usageError{fmt.Errorf("collecting what %s embeds: %w", s.File, err)}
			}
		}
	}
	site, err := c.site(file)
	if err != nil {
		return bundle.Site{}, lock.Lock{}, usageError{err}
	}
	return site, l, nil
}

// relative makes a path start at the working directory.
func relative(file string) (string, error) {
	if !filepath.IsAbs(file) {
		return filepath.Clean(file), nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", file, err)
	}
	return filepath.Rel(wd, file)
}

// collector reads files and remembers them by path.
type collector struct{ files map[string]bundle.File }

// read is os.ReadFile.
func (c collector) read(file string) ([]byte, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	if err == nil {
		c.files[filepath.Clean(file)] = bundle.File{Executable: st.Mode()&0o111 != 0, Content: b}
	}
	return b, err
}

// embedded reads what a Butane file embeds.
func (c collector) embedded(s cluster.Snippet) error {
	names, err := snippet.Locals(s.Content)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := filepath.WalkDir(filepath.Join(s.Dir, name), func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			// Butane follows the link that a file is, and writes a link where it is
			// part of a tree.
			if !d.Type().IsRegular() && file != filepath.Join(s.Dir, name) {
				return fmt.Errorf("%s is no regular file, and a bundle holds nothing else; write a link as storage.links", file)
			}
			_, err = c.read(file)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// site names the files from the directory that they have in common.
func (c collector) site(clusterFile string) (bundle.Site, error) {
	abs := map[string]bundle.File{}
	root := ""
	for file, f := range c.files {
		if filepath.IsAbs(file) {
			return bundle.Site{}, fmt.Errorf("%s is named by an absolute path, which is not there where a bundle is opened; put the file beside cluster.yaml and name it by a relative path", file)
		}
		a, err := filepath.Abs(file)
		if err != nil {
			return bundle.Site{}, err
		}
		abs[a] = f
		if root == "" {
			root = filepath.Dir(a)
		}
		for !strings.HasPrefix(a, strings.TrimSuffix(root, "/")+"/") {
			root = filepath.Dir(root)
		}
	}
	var s bundle.Site
	for a, f := range abs {
		name, err := filepath.Rel(root, a)
		if err != nil {
			return bundle.Site{}, err
		}
		f.Name = filepath.ToSlash(name)
		s.Files = append(s.Files, f)
	}
	slices.SortFunc(s.Files, func(a, b bundle.File) int { return strings.Compare(a.Name, b.Name) })
	a, err := filepath.Abs(clusterFile)
	if err != nil {
		return bundle.Site{}, err
	}
	name, err := filepath.Rel(root, a)
	s.Cluster = filepath.ToSlash(name)
	return s, err
}
