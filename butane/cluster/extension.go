package cluster

import (
	"reflect"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/upstream"
)

// ownExtensions are the system extensions that imagectl builds itself.
func ownExtensions() []string {
	return []string{"imagectl", "kubernetes", "etcd", "images", "runtimes"}
}

// extensions are those of all roles by name, and where the first of a name stands.
type extensions struct {
	// vars are for placeholders in sources.
	vars map[string]string
	made map[string]Extension
	at   map[string]place
}

// extensions checks those of one role.
func (c *checker) extensions(list []rawExtension, known extensions) []Extension {
	names := map[string]place{}
	recipes := map[string]place{}
	var out []Extension
	for _, raw := range list {
		c.unique(names, "name", raw.Name.V, raw.Name.place)
		x := Extension{Name: c.label(raw.Name)}
		at := raw.Name.place
		if slices.Contains(ownExtensions(), x.Name) {
			c.add(at.Pos, at.Path, "", "the extension %s is built by imagectl; choose another name", x.Name)
		}
		switch {
		case raw.Source.Set && raw.Recipe.Set:
			c.add(raw.Recipe.Pos, raw.Recipe.Path, "remove source or recipe", "an extension is ready-made (source) or made by a recipe, not both")
		case raw.Recipe.Set:
			c.made(&x, raw, known.vars)
			if x.Recipe != nil && x.Recipe.Name != "tree" {
				c.unique(recipes, "recipe", x.Recipe.Name, raw.Recipe.place)
			}
		case raw.Source.Set:
			x.Source = c.source(raw.Source, known.vars)
			if len(raw.Inputs) > 0 {
				c.add(raw.Inputs[0].Pos, raw.Inputs[0].Path, "", "inputs belong to a recipe, and this extension has none")
			}
		default:
			c.add(at.Pos, raw.Path, "source: the URL or path of a NAME.raw; recipe: one of "+strings.Join(upstream.Names(), ", "), "an extension needs source or recipe")
		}
		if first, ok := known.made[x.Name]; !ok {
			known.made[x.Name], known.at[x.Name] = x, at
		} else if x.Name != "" && !reflect.DeepEqual(first, x) && names[x.Name] == at {
			c.add(at.Pos, at.Path, "", "extension %s is another one here than at %s", x.Name, known.at[x.Name].Pos)
		}
		out = append(out, x)
	}
	return out
}

// made checks an extension that a recipe makes.
func (c *checker) made(x *Extension, raw rawExtension, vars map[string]string) {
	r, err := upstream.Find(raw.Recipe.V)
	if err != nil {
		c.add(raw.Recipe.Pos, raw.Recipe.Path, "", "%s", err)
		return
	}
	x.Recipe = &r
	given := map[string]string{}
	for _, in := range raw.Inputs {
		if !slices.Contains(r.InputNames(), in.Key) {
			c.add(in.Pos, in.Path, "", "recipe %s takes no input %s; it takes %s", r.Name, in.Key, strings.Join(r.InputNames(), ", "))
			continue
		}
		given[in.Key] = c.source(in.V, vars)
	}
	for _, in := range r.Inputs {
		source, ok := given[in.Name]
		if !ok {
			c.add(raw.Recipe.Pos, raw.Recipe.Path, "inputs: {"+in.Name+": URL or path}", "recipe %s needs the input %s: %s", r.Name, in.Name, in.About)
		}
		x.Inputs = append(x.Inputs, Named{Name: in.Name, Source: source})
	}
}
