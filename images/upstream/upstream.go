// Package upstream describes extensions that imagectl makes out of other projects'
// releases. Each is a recipe, as data in recipes/: what of the release goes where,
// the units that run it, and the container runtimes that it adds.
//
// It fetches and writes nothing, and it pins nothing: cluster.yaml names the
// inputs, and the lock file their digests.
package upstream

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

//go:embed recipes/*.yaml
var recipes embed.FS

// Recipe is how one extension is made.
type Recipe struct {
	// Name is what cluster.yaml calls it.
	Name string `yaml:"-"`
	// Digest is the recipe's own SHA-256, lower-case hexadecimal.
	Digest string `yaml:"-"`
	// About is one line for people.
	About string `yaml:"about"`
	// Inputs are what cluster.yaml must name, in the order of the file.
	Inputs []Input `yaml:"inputs"`
	// Files are written besides the inputs'.
	Files []File `yaml:"files"`
	// Uphold are units among the files that run from boot on.
	Uphold []string `yaml:"uphold"`
	// Needs are patterns (path.Match) of paths that the extension must end up with.
	Needs []string `yaml:"needs"`
	// Runtimes are added to containerd's configuration.
	Runtimes []Runtime `yaml:"runtimes"`
}

// Input is one release archive. Either Take or Tree is set.
type Input struct {
	Name  string `yaml:"name"`
	About string `yaml:"about"`
	// Take is what to take out of the archive; all of it must be there.
	Take []Take `yaml:"take"`
	// Tree takes the archive's usr/ as it is.
	Tree bool `yaml:"tree"`
}

// Take is members of an archive.
type Take struct {
	// Member is a path in the archive, which must be a program, or a pattern for
	// several of anything (path.Match).
	Member string `yaml:"member"`
	// To is the directory that they go to.
	To string `yaml:"to"`
}

// File is text of the recipe's own.
type File struct {
	Path    string `yaml:"path"`
	Content string `yaml:"content"`
}

// Runtime is a runtime of containerd's, which a RuntimeClass names as its handler.
type Runtime struct {
	Name string `yaml:"name"`
	// Type decides the shim: io.containerd.runsc.v1 is containerd-shim-runsc-v1.
	Type string `yaml:"type"`
	// Options are strings and booleans, for the shim.
	Options []Option `yaml:"options"`
}

// Option is one key of a runtime's options. Text is used when it is not empty,
// Flag otherwise.
type Option struct {
	Key  string `yaml:"key"`
	Text string `yaml:"text"`
	Flag bool   `yaml:"flag"`
}

// Names lists the recipes, sorted.
func Names() []string {
	entries, err := recipes.ReadDir("recipes")
	if err != nil {
		return nil // the embedded directory is always there
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	slices.Sort(names)
	return names
}

// Find returns a recipe. The error names those that exist.
func Find(name string) (Recipe, error) {
	if !slices.Contains(Names(), name) {
		return Recipe{}, fmt.Errorf("recipe %q is not known; known are %s", name, strings.Join(Names(), ", "))
	}
	b, err := recipes.ReadFile("recipes/" + name + ".yaml")
	if err != nil {
		return Recipe{}, fmt.Errorf("reading recipe %s: %w", name, err)
	}
	sum := sha256.Sum256(b)
	r := Recipe{Name: name, Digest: hex.EncodeToString(sum[:])}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&r); err != nil {
		return Recipe{}, fmt.Errorf("reading recipe %s: %w", name, err)
	}
	if err := r.check(); err != nil {
		return Recipe{}, fmt.Errorf("reading recipe %s: %w", name, err)
	}
	return r, nil
}

// InputNames lists the inputs.
func (r Recipe) InputNames() []string {
	var names []string
	for _, i := range r.Inputs {
		names = append(names, i.Name)
	}
	return names
}

func (r Recipe) check() error {
	if r.About == "" || len(r.Inputs) == 0 {
		return errors.New("it needs about and inputs")
	}
	for _, i := range r.Inputs {
		if i.Name == "" || i.Tree == (len(i.Take) > 0) {
			return fmt.Errorf("input %q needs a name, and either take or tree", i.Name)
		}
		for _, t := range i.Take {
			if _, err := path.Match(t.Member, ""); err != nil || t.Member == "" || !inUsr(t.To) {
				return fmt.Errorf("input %s takes %q to %q: want a pattern and a directory in usr/", i.Name, t.Member, t.To)
			}
		}
	}
	for _, f := range r.Files {
		if !inUsr(f.Path) {
			return fmt.Errorf("file %s is outside usr/", f.Path)
		}
	}
	for _, u := range r.Uphold {
		if !slices.ContainsFunc(r.Files, func(f File) bool { return f.Path == "usr/lib/systemd/system/"+u }) {
			return fmt.Errorf("unit %s is not among its files", u)
		}
	}
	for _, n := range r.Needs {
		if _, err := path.Match(n, ""); err != nil {
			return fmt.Errorf("pattern %s: %w", n, err)
		}
	}
	return nil
}

func inUsr(p string) bool { return path.Clean(p) == p && strings.HasPrefix(p, "usr/") }
