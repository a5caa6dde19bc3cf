package cluster

import (
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// placeholder is {name} in a source.
var placeholder = regexp.MustCompile(`\{([^{}]*)\}`)

// source expands and checks where an input comes from: an http(s) URL, or a path
// that starts at the directory of the file it is written in.
func (c *checker) source(f rawString, vars map[string]string) string {
	if !f.Set {
		return ""
	}
	s := placeholder.ReplaceAllStringFunc(f.V, func(m string) string {
		v, ok := vars[strings.Trim(m, "{}")]
		if !ok {
			var names []string
			for _, name := range []string{"version", "arch", "channel"} {
				if _, ok := vars[name]; ok {
					names = append(names, "{"+name+"}")
				}
			}
			c.add(f.Pos, f.Path, "known here: "+strings.Join(names, " "), "unknown placeholder %s", m)
		}
		return v
	})
	f.V = s
	if !strings.Contains(s, "://") {
		return c.path(f)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		c.add(f.Pos, f.Path, "", "%q is not a URL: %s", s, cause(err))
	case u.Scheme != "http" && u.Scheme != "https":
		c.add(f.Pos, f.Path, "for a local file write its path alone", "a source is an http or https URL or a path, not %s://", u.Scheme)
	case u.Host == "":
		c.add(f.Pos, f.Path, "", "%q names no host", s)
	case u.User != nil:
		// Not printed: it may be a password.
		c.add(f.Pos, f.Path, "", "a URL here must not carry a user or a password: cluster.yaml and the lock file are in git")
	case u.Fragment != "":
		c.add(f.Pos, f.Path, "", "a URL here must not carry a #fragment")
	}
	return s
}

// path makes a path relative to the directory of cluster.yaml, from the file it
// is written in.
func (c *checker) path(f rawString) string {
	if f.V == "" {
		c.add(f.Pos, f.Path, "", "is empty, want a URL or a path")
		return ""
	}
	if strings.HasPrefix(f.V, "~") {
		c.add(f.Pos, f.Path, "", "~ is not expanded; write a path that starts at this file's directory")
	}
	if filepath.IsAbs(f.V) || f.Pos.File == "" {
		return filepath.Clean(f.V)
	}
	rel, err := filepath.Rel(c.dir, filepath.Join(filepath.Dir(f.Pos.File), f.V))
	if err != nil {
		return filepath.Clean(f.V)
	}
	return filepath.ToSlash(rel)
}

// locate is a path as read takes it, from the file it is written in.
func (c *checker) locate(f rawString) string {
	if filepath.IsAbs(f.V) {
		return f.V
	}
	return filepath.Join(filepath.Dir(f.Pos.File), f.V)
}

// joinSource appends to a URL or a directory.
func joinSource(base, elem string) string {
	if strings.Contains(base, "://") {
		return strings.TrimSuffix(base, "/") + "/" + elem
	}
	return path.Join(base, elem)
}

// inputs checks a list of named sources.
func (c *checker) inputs(list []rawNamed, vars map[string]string) []Named {
	seen := map[string]place{}
	var out []Named
	for _, n := range list {
		c.unique(seen, "name", n.Name.V, n.Name.place)
		out = append(out, Named{Name: c.label(n.Name), Source: c.source(n.Source, vars)})
	}
	return out
}

// unique reports the second use of a value. Empty values are not looked at.
func (c *checker) unique(seen map[string]place, what, value string, at place) {
	if value == "" {
		return
	}
	if first, dup := seen[value]; dup {
		c.add(at.Pos, at.Path, "", "%s %s is used twice: first at %s (%s)", what, value, first.Pos, first.Path)
		return
	}
	seen[value] = at
}
