package uploadtest

import (
	"slices"

	"github.com/imagectl/imagectl/images/upload"
)

// Journal is an upload.Journal in memory. The zero value is empty.
type Journal struct{ left []upload.Leftover }

// Left implements upload.Journal.
func (j *Journal) Left() []upload.Leftover { return slices.Clone(j.left) }

// Write implements upload.Journal.
func (j *Journal) Write(l upload.Leftover) error {
	for i, o := range j.left {
		if o.Kind == l.Kind && o.Name == l.Name {
			j.left[i] = l
			return nil
		}
	}
	j.left = append(j.left, l)
	return nil
}

// Forget implements upload.Journal.
func (j *Journal) Forget(l upload.Leftover) error {
	j.left = slices.DeleteFunc(j.left, func(o upload.Leftover) bool { return o.Kind == l.Kind && o.Name == l.Name })
	return nil
}
