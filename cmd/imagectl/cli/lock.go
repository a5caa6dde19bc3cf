package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
)

func newLock(g *globals) *cobra.Command {
	var update bool
	var cache, output string
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Pin every input by digest, size and signer",
		Long: "Fetch every input that cluster.yaml names into the cache, check signatures, and\n" +
			"write imagectl.lock beside cluster.yaml. Commit it: the same lock and the same\n" +
			"cluster.yaml give the same bytes anywhere. What is locked stays as it is until\n" +
			"its source changes in cluster.yaml or --update is given.",
		Example: "  imagectl lock\n  imagectl lock --update && git diff imagectl.lock",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return usageError{fmt.Errorf("output format %q is not known; -o json is", output)}
			}
			spec, err := g.spec()
			if err != nil {
				return err
			}
			s, err := openCache(cache)
			if err != nil {
				return err
			}
			previous, err := lock.Read(g.lockFile())
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				// A lock that cannot be read must not be replaced unseen.
				return usageError{err}
			}
			r, err := resolve(cmd.Context(), g, s, spec.Wants(), previous, update)
			if err != nil {
				return err
			}
			if err := lock.Write(g.lockFile(), r.Lock); err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(g.stdio.Out, lockReport{File: g.lockFile(), Inputs: len(r.Lock.Inputs), Added: r.Added, Changed: r.Changed, Removed: r.Removed, Stale: r.Stale})
			}
			return printLock(g.stdio.Out, g.lockFile(), r)
		},
	}
	cmd.Flags().BoolVar(&update, "update", false, "look at every source anew")
	cmd.Flags().StringVarP(&output, "output", "o", "", "output format: json")
	cacheFlag(cmd, &cache)
	return cmd
}

// lockReport is the JSON form.
type lockReport struct {
	File    string    `json:"file"`
	Inputs  int       `json:"inputs"`
	Added   []lock.ID `json:"added,omitempty"`
	Changed []lock.ID `json:"changed,omitempty"`
	Removed []lock.ID `json:"removed,omitempty"`
	Stale   []lock.ID `json:"stale,omitempty"`
}

func resolve(ctx context.Context, g *globals, s *store.Store, wants []release.Want, previous lock.Lock, update bool) (release.Result, error) {
	p := newProgress(g.stdio.Err)
	defer p.close()
	return release.Resolve(ctx, wants, release.Options{
		Store: s, Dir: g.dir(), Previous: previous, Update: update, Now: time.Now(),
		Watch: p.watch,
	})
}

func printLock(w io.Writer, file string, r release.Result) error {
	for _, c := range []struct {
		what string
		ids  []lock.ID
	}{{"added", r.Added}, {"changed", r.Changed}, {"removed", r.Removed}} {
		for _, id := range c.ids {
			b, ok := r.Lock.Find(id)
			if !ok {
				fmt.Fprintf(w, "%-8s %s\n", c.what, id)
				continue
			}
			fmt.Fprintf(w, "%-8s %s  %s  sha256 %s\n", c.what, id, size(b.Size), b.SHA256[:16])
			if s := b.Signer; s != nil {
				fmt.Fprintf(w, "         signed by %s, subkey %s, on %s\n", s.Primary, s.Subkey, s.SignedAt)
			}
		}
	}
	for _, id := range r.Stale {
		b, _ := r.Lock.Find(id)
		fmt.Fprintf(w, "kept     %s as locked, though %s is another file now; imagectl lock --update takes it\n", id, b.Source)
	}
	changes := len(r.Added) + len(r.Changed) + len(r.Removed)
	if changes == 0 {
		_, err := fmt.Fprintf(w, "%s: %s locked, no changes\nnext: imagectl build\n", file, count(len(r.Lock.Inputs), "input"))
		return err
	}
	_, err := fmt.Fprintf(w, "%s: %s locked, %s\nnext: commit it, then imagectl build\n", file, count(len(r.Lock.Inputs), "input"), count(changes, "change"))
	return err
}

// cacheFlag adds --cache; openCache says what its zero value means.
func cacheFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "cache", "", "cache directory (default $IMAGECTL_CACHE, else the user's cache directory)")
}

func openCache(dir string) (*store.Store, error) {
	if dir == "" {
		dir = os.Getenv("IMAGECTL_CACHE")
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("finding the cache directory: %w; give one with --cache", err)
		}
		dir = filepath.Join(user, "imagectl")
	}
	return store.Open(dir, nil)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q; see %s --help", cmd.Name(), args[0], cmd.CommandPath())}
	}
	return nil
}
