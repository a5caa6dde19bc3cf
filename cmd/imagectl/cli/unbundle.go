package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/bundle"
	"github.com/imagectl/imagectl/images/store"
)

func newUnbundle(g *globals) *cobra.Command {
	var dir, cache, sums string
	var checkOnly, asJSON bool
	cmd := &cobra.Command{
		Use:   "unbundle FILE",
		Short: "Open a bundle where there is no internet",
		Long: "Read a file that imagectl bundle wrote, check every digest, put the locked inputs\n" +
			"into the cache and cluster.yaml with what it names into a directory. It needs no\n" +
			"network, and neither does imagectl build after it. An input that the cache has is\n" +
			"not written again, so a run that broke off is quick the second time. A file of\n" +
			"the directory that differs is never replaced.\n\n" +
			"A bundle is not signed. With --sums nothing is written unless it is the one whose\n" +
			"digest imagectl bundle printed, which must come another way than the file.",
		Example: "  imagectl unbundle site.tar -C site --sums 3f1c… && cd site && imagectl build\n  imagectl unbundle site.tar --check",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("unbundle takes one file, got %d; see %s --help", len(args), cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("sums") && !sumsForm.MatchString(sums) {
				return usageError{fmt.Errorf("--sums %q is not 64 hexadecimal digits; imagectl bundle prints them", sums)}
			}
			f, err := os.Open(args[0])
			if err != nil {
				return usageError{fmt.Errorf("opening the bundle: %w", err)}
			}
			defer f.Close()
			r := unbundleReport{}
			if checkOnly {
				r, err = unbundle(cmd.Context(), g, f, sums, nil, "")
			} else {
				var s *store.Store
				if s, err = openCache(cache); err == nil {
					r, err = unbundle(cmd.Context(), g, f, sums, s, dir)
				}
			}
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if asJSON {
				return writeJSON(g.stdio.Out, r)
			}
			return printUnbundle(g.stdio.Out, args[0], r, checkOnly)
		},
	}
	cmd.Flags().StringVarP(&dir, "directory", "C", ".", "where to put cluster.yaml and what it names")
	cmd.Flags().StringVar(&sums, "sums", "", "sha256 that the bundle's SHA256SUMS must have")
	cmd.Flags().BoolVar(&checkOnly, "check", false, "only check; write nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was found as JSON")
	cacheFlag(cmd, &cache)
	return cmd
}

// unbundleReport is the JSON form.
type unbundleReport struct {
	// Cluster is where the cluster file is now, or is in the bundle with --check.
	Cluster string `json:"cluster"`
	// Sums is the digest of the member SHA256SUMS.
	Sums string `json:"sums"`
	// Written and Unchanged are the site's files.
	Written   []string `json:"written,omitempty"`
	Unchanged []string `json:"unchanged,omitempty"`
}

var sumsForm = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// unbundle reads a bundle into a store and a directory, or only checks it when s
// is nil. It must be the bundle that sums names, unless that is empty.
func unbundle(ctx context.Context, g *globals, in io.Reader, sums string, s *store.Store, dir string) (unbundleReport, error) {
	b, err := bundle.Open(in)
	if err != nil {
		return unbundleReport{}, err
	}
	if sums != "" && !strings.EqualFold(sums, b.Sums) {
		return unbundleReport{}, fmt.Errorf("it is another bundle than the one that was sent: the sha256 of its SHA256SUMS is %s, want %s; nothing was written", b.Sums, sums)
	}
	r := unbundleReport{Sums: b.Sums, Cluster: filepath.Join(dir, filepath.FromSlash(b.Site.Cluster))}
	var t *siteDir
	if s != nil {
		// Conflicts are found before gigabytes are copied.
		if t, err = openSite(dir, b.Site); err != nil {
			return unbundleReport{}, err
		}
		defer t.close()
	}
	p := newProgress(g.stdio.Err)
	err = b.Receive(ctx, s, func(what string, done, total int64) { p.step("reading "+what, done, total) })
	p.close()
	if err != nil || s == nil {
		return r, err
	}
	r.Written, r.Unchanged, err = t.write()
	return r, err
}

// siteDir is the directory that takes a site. No link in it leads a file to
// another place.
type siteDir struct {
	root      *os.Root
	missing   []bundle.File
	unchanged []string
}

// openSite makes the directory and finds what is to be written. It is an error
// when a file is there and differs.
func openSite(dir string, site bundle.Site) (*siteDir, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the site's directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the site's directory: %w", err)
	}
	t := &siteDir{root: root}
	var errs []error
	for _, f := range site.Files {
		have, err := t.read(f.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			t.missing = append(t.missing, f)
		case err != nil:
			errs = append(errs, err)
		case have.Executable != f.Executable || !bytes.Equal(have.Content, f.Content):
			errs = append(errs, fmt.Errorf("%s is there and differs", filepath.Join(dir, f.Name)))
		default:
			t.unchanged = append(t.unchanged, f.Name)
		}
	}
	if len(errs) > 0 {
		t.close()
		return nil, usageError{fmt.Errorf("nothing was written; give another directory with -C:\n%w", errors.Join(errs...))}
	}
	return t, nil
}

func (t *siteDir) read(name string) (bundle.File, error) {
	st, err := t.root.Stat(name)
	if err != nil {
		return bundle.File{}, err
	}
	content, err := t.root.ReadFile(name)
	return bundle.File{Name: name, Executable: st.Mode()&0o111 != 0, Content: content}, err
}

func (t *siteDir) close() { t.root.Close() }

// write writes what is missing, each file in one step.
func (t *siteDir) write() (written, unchanged []string, err error) {
	for _, f := range t.missing {
		if err := t.writeOne(f); err != nil {
			return written, t.unchanged, fmt.Errorf("writing %s: %w", f.Name, err)
		}
		written = append(written, f.Name)
	}
	return written, t.unchanged, nil
}

func (t *siteDir) writeOne(f bundle.File) (err error) {
	if err := t.root.MkdirAll(path.Dir(f.Name), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if f.Executable {
		mode = 0o755
	}
	tmp := path.Join(path.Dir(f.Name), "."+path.Base(f.Name)+".unbundle")
	out, err := t.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() {
		out.Close()
		if err != nil {
			_ = t.root.Remove(tmp) // what went wrong first is what to say
		}
	}()
	if _, err := out.Write(f.Content); err != nil {
		return err
	}
	// Butane takes a file's mode over, so the umask must not decide it.
	if err := errors.Join(out.Chmod(mode), out.Sync()); err != nil {
		return err
	}
	if err := t.root.Rename(tmp, f.Name); err != nil {
		return err
	}
	d, err := t.root.Open(path.Dir(f.Name))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func printUnbundle(w io.Writer, file string, r unbundleReport, checked bool) error {
	if checked {
		_, err := fmt.Fprintf(w, "%s: good\nsha256 of its SHA256SUMS: %s\nnext: imagectl unbundle %s -C DIR\n", file, r.Sums, file)
		return err
	}
	for _, name := range r.Written {
		fmt.Fprintf(w, "written    %s\n", name)
	}
	for _, name := range r.Unchanged {
		fmt.Fprintf(w, "unchanged  %s\n", name)
	}
	_, err := fmt.Fprintf(w, "%s: good, the cache has every input of %s\nsha256 of its SHA256SUMS: %s\nnext: imagectl build -f %s\n", file, r.Cluster, r.Sums, r.Cluster)
	return err
}
