package cluster

import (
	"fmt"

	"github.com/imagectl/imagectl/butane/diag"
)

// Value is one value of the merged file.
type Value struct {
	// Pos is the file and the place that it comes from.
	diag.Pos
	Path string `json:"path"`
	// Value is its text; "[]" and "{}" stand for an empty list and mapping.
	Value string `json:"value"`
}

// Merged lists every value of a cluster file laid over what it extends, in the
// order of the files. It checks no more than that they can be read.
func Merged(read func(path string) ([]byte, error), file string) ([]Value, diag.List) {
	var found diag.List
	l := &loader{read: read, found: &found}
	var out []Value
	if root := l.load(file, nil); root != nil {
		out = root.values("", nil)
	}
	found.Sort()
	return out, found
}

func (n *node) values(path string, out []Value) []Value {
	switch {
	case n.kind == mappingKind && len(n.members) > 0:
		for _, m := range n.members {
			out = m.val.values(join(path, m.key), out)
		}
	case n.kind == sequenceKind && len(n.items) > 0:
		for i, item := range n.items {
			out = item.values(fmt.Sprintf("%s[%d]", path, i), out)
		}
	case n.kind == mappingKind:
		out = append(out, Value{Pos: n.pos, Path: path, Value: "{}"})
	case n.kind == sequenceKind:
		out = append(out, Value{Pos: n.pos, Path: path, Value: "[]"})
	default:
		out = append(out, Value{Pos: n.pos, Path: path, Value: n.text})
	}
	return out
}

// NameIn is the name of the cluster that a file is of, over what it extends; empty where there
// is no such file, or none that names a cluster. Nothing else in it is checked.
func NameIn(read func(path string) ([]byte, error), file string) string {
	values, _ := Merged(read, file)
	for _, v := range values {
		if v.Path == "cluster" {
			return v.Value
		}
	}
	return ""
}
