package cluster

import (
	"cmp"
	"path/filepath"
	"slices"

	"github.com/imagectl/imagectl/butane/snippet"
)

// ownExtensions are the system extensions that imagectl builds itself.
func ownExtensions() []string { return []string{"imagectl", "kubernetes", "etcd", "images"} }

func (c *checker) roles(raw dict[rawRole]) []Role {
	sources := map[string]string{}
	seen := map[string]place{}
	var out []Role
	for _, e := range raw {
		name := c.label(rawString{place: e.place, V: e.Key, Set: true})
		r := Role{
			Name:         name,
			ControlPlane: c.choice(e.V.Kind, "worker", []string{"control-plane", "worker"}, nil) == "control-plane",
			KernelArgs:   c.kernelArgs(e.V.KernelArgs),
			Labels:       c.labels(e.V.Labels),
			Taints:       c.taints(e.V.Taints),
			Extensions:   c.inputs(e.V.Extensions, map[string]string{"arch": "amd64"}),
		}
		for i, x := range r.Extensions {
			at := e.V.Extensions[i].Name.place
			if slices.Contains(ownExtensions(), x.Name) {
				c.add(at.Pos, at.Path, "", "the extension %s is built by imagectl; choose another name", x.Name)
			}
			if first, ok := sources[x.Name]; ok && first != x.Source && x.Name != "" {
				c.add(at.Pos, at.Path, "", "extension %s has the source %s here and %s at %s", x.Name, x.Source, first, seen[x.Name].Pos)
			} else if !ok {
				sources[x.Name], seen[x.Name] = x.Source, at
			}
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
