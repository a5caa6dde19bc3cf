package etcdsnap

import (
	"context"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

// Listed is a snapshot that is somewhere.
type Listed struct {
	files.File
	// Manifest is the zero value where it is not in the directory.
	Manifest              Manifest
	InDirectory, InCopies bool
}

// List returns all snapshots of the cluster, the newest first; problems say what could not be looked
// at. ctx bounds the look at the other place.
func (k *Keeper) List(ctx context.Context) (all []Listed, problems []error) {
	by := map[string]*Listed{}
	add := func(found []files.File, err error, there func(*Listed)) {
		if err != nil {
			problems = append(problems, err)
		}
		for _, f := range files.Of(k.cfg.Cluster, found) {
			if by[f.Name] == nil {
				by[f.Name] = &Listed{File: f}
			}
			there(by[f.Name])
		}
	}
	found, err := files.Etcd.List(k.cfg.Dir)
	add(found, err, func(l *Listed) {
		l.InDirectory = true
		if m, err := k.manifest(l.Name); err != nil {
			problems = append(problems, err)
		} else {
			l.Manifest = m
		}
	})
	if k.cfg.Copies != nil {
		found, err := k.cfg.Copies.List(ctx)
		add(found, err, func(l *Listed) { l.InCopies = true })
	}
	for _, l := range by {
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b Listed) int { return b.At.Compare(a.At) })
	return all, problems
}
