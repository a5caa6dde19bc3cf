package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/diag"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/images/lock"
)

// dir is the directory of cluster.yaml, where relative sources start.
func (g *globals) dir() string { return filepath.Dir(g.file) }

// lockFile is imagectl.lock beside cluster.yaml.
func (g *globals) lockFile() string { return filepath.Join(g.dir(), lock.FileName) }

// report prints findings to Err and returns an error of exit code 2 when one of
// them is an error.
func (g *globals) report(found diag.List) error {
	if err := diag.Fprint(g.stdio.Err, g.unsaid(found), os.ReadFile); err != nil {
		return err
	}
	if err := found.Err(); err != nil {
		return usageError{reportedError{err}}
	}
	return nil
}

// unsaid are the findings without the warnings that were printed before.
func (g *globals) unsaid(found diag.List) diag.List {
	var out diag.List
	for _, f := range found {
		if _, said := g.warned.LoadOrStore(f.String(), true); !said || f.Severity != diag.Warning {
			out = append(out, f)
		}
	}
	return out
}

// reader is os.ReadFile, or something that looks like it.
type reader func(path string) ([]byte, error)

// spec reads cluster.yaml and prints what there is to say about it.
func (g *globals) spec() (cluster.Spec, error) { return g.specBy(os.ReadFile) }

func (g *globals) specBy(read reader) (cluster.Spec, error) {
	spec, found := cluster.Parse(read, g.file)
	return spec, g.report(found)
}

// plan reads cluster.yaml and the lock file.
func (g *globals) plan() (plan.Plan, error) { return g.planBy(os.ReadFile) }

func (g *globals) planBy(read reader) (plan.Plan, error) {
	spec, err := g.specBy(read)
	if err != nil {
		return plan.Plan{}, err
	}
	l, err := lock.Read(g.lockFile())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return plan.Plan{}, usageError{fmt.Errorf("%s is missing; run imagectl lock", g.lockFile())}
	case err != nil:
		return plan.Plan{}, usageError{err}
	}
	p, found := plan.Resolve(spec, l, g.lockFile())
	return p, g.report(found)
}
