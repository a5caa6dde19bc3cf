package cluster

import (
	"cmp"
	"path/filepath"
	"slices"

	"github.com/imagectl/imagectl/butane/snippet"
)

// roles checks the roles; vars are for placeholders in sources.
func (c *checker) roles(raw dict[rawRole], vars map[string]string) []Role {
	known := extensions{vars: vars, made: map[string]Extension{}, at: map[string]place{}}
	var out []Role
	for _, e := range raw {
		name := c.label(rawString{place: e.place, V: e.Key, Set: true})
		r := Role{
			Name:         name,
			ControlPlane: c.choice(e.V.Kind, "worker", []string{"control-plane", "worker"}, nil) == "control-plane",
			KernelArgs:   c.kernelArgs(e.V.KernelArgs),
			Labels:       c.labels(e.V.Labels),
			Taints:       c.taints(e.V.Taints),
			Extensions:   c.extensions(e.V.Extensions, known),
		}
		for _, f := range e.V.Butane {
			if s, ok := c.snippet(f); ok {
				r.Butane = append(r.Butane, s)
			}
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b Role) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// snippet reads a Butane file and reports what is wrong inside it.
func (c *checker) snippet(f rawString) (Snippet, bool) {
	if !f.Set {
		return Snippet{}, false
	}
	file := c.locate(f)
	content, err := c.read(file)
	if err != nil {
		c.add(f.Pos, f.Path, "the path starts at the directory of "+f.Pos.File, "Butane file %s cannot be read: %s", file, cause(err))
		return Snippet{}, false
	}
	s := Snippet{File: file, Content: content, Dir: filepath.Dir(file)}
	_, found := snippet.Translate(s.File, s.Content, s.Dir)
	*c.found = append(*c.found, found...)
	return s, true
}
