package cluster

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/imagectl/imagectl/butane/diag"
)

// kind is the shape of a node.
type kind int

const (
	scalarKind kind = iota
	mappingKind
	sequenceKind
)

func (k kind) String() string {
	return [...]string{"a value", "a mapping", "a list"}[k]
}

// node is a YAML value that remembers where it stands. It is our own tree and
// not yaml.Node, because values of several files are merged into one tree and
// each keeps its file.
type node struct {
	kind kind
	pos  diag.Pos
	// tag and text are of a scalar: "!!str", "!!int", ...
	tag, text string
	members   []member
	items     []*node
}

// member is one key of a mapping.
type member struct {
	key string
	pos diag.Pos
	val *node
}

func (n *node) member(key string) (member, bool) {
	for _, m := range n.members {
		if m.key == key {
			return m, true
		}
	}
	return member{}, false
}

// maxDepth bounds nesting; the deepest legitimate file has about eight levels.
const maxDepth = 64

var (
	// yamlLine finds the line in yaml.v3's syntax errors, which carry no position
	// otherwise.
	yamlLine = regexp.MustCompile(`line (\d+): `)
	// yamlParserError are the errors of its parser, whose line is one too low; the
	// line of its scanner's errors is right (yaml.v3 decode.go, func fail).
	yamlParserError = regexp.MustCompile(`did not find expected (<|key|'-'|',' or|node content)`)
)

// parseYAML reads one document into a tree. It returns nil when there is none
// to work with.
func parseYAML(file string, text []byte, found *diag.List) *node {
	add := func(line, col int, msg, hint string) {
		*found = append(*found, diag.Finding{Pos: diag.Pos{File: file, Line: line, Column: col}, Message: msg, Hint: hint})
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		msg, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
		if m := yamlLine.FindStringSubmatchIndex(msg); m != nil {
			if n, err := strconv.Atoi(msg[m[2]:m[3]]); err == nil {
				line = n
			}
			if yamlParserError.MatchString(msg) {
				line++
			}
			msg = msg[:m[0]] + msg[m[1]:]
		}
		add(line, 0, "not valid YAML: "+msg, "")
		return nil
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		add(1, 1, "the file is empty", "imagectl init writes a starter cluster.yaml")
		return nil
	}
	root := convert(file, doc.Content[0], 0, found)
	if root != nil && root.kind != mappingKind {
		add(root.pos.Line, root.pos.Column, fmt.Sprintf("the file holds %s, want a mapping with keys such as version and cluster", root.kind), "")
		return nil
	}
	return root
}

// convert copies a yaml.Node. What it refuses it reports, and returns nil.
func convert(file string, y *yaml.Node, depth int, found *diag.List) *node {
	const anchorHint = "write the value out, or share it with extends"
	pos := diag.Pos{File: file, Line: y.Line, Column: y.Column}
	refuse := func(msg, hint string) *node {
		*found = append(*found, diag.Finding{Pos: pos, Message: msg, Hint: hint})
		return nil
	}
	if depth > maxDepth {
		return refuse(fmt.Sprintf("nested more than %d levels deep", maxDepth), "")
	}
	if y.Anchor != "" {
		refuse("YAML anchors are not accepted: a reviewer should see every value where it is used", anchorHint)
	}
	n := &node{pos: pos}
	switch y.Kind {
	case yaml.ScalarNode:
		n.kind, n.tag, n.text = scalarKind, y.ShortTag(), y.Value
	case yaml.SequenceNode:
		n.kind = sequenceKind
		for _, c := range y.Content {
			if item := convert(file, c, depth+1, found); item != nil {
				n.items = append(n.items, item)
			}
		}
	case yaml.MappingNode:
		n.kind = mappingKind
		lines := map[string]int{} // of each key
		for i := 0; i+1 < len(y.Content); i += 2 {
			k := y.Content[i]
			keyPos := diag.Pos{File: file, Line: k.Line, Column: k.Column}
			val := convert(file, y.Content[i+1], depth+1, found)
			first, dup := lines[k.Value]
			switch {
			case k.Kind != yaml.ScalarNode:
				*found = append(*found, diag.Finding{Pos: keyPos, Message: "a key must be a plain word"})
			case dup:
				*found = append(*found, diag.Finding{Pos: keyPos, Message: fmt.Sprintf("key %q is here twice; the first is on line %d", k.Value, first)})
			case val != nil:
				lines[k.Value] = k.Line
				n.members = append(n.members, member{key: k.Value, pos: keyPos, val: val})
			}
		}
	default:
		return refuse("YAML aliases are not accepted: a reviewer should see every value where it is used", anchorHint)
	}
	return n
}

// loader reads cluster.yaml and the files that it extends.
type loader struct {
	read  func(string) ([]byte, error)
	found *diag.List
}

// load returns the tree of a file merged over the file it extends. via are the
// files that led here.
func (l *loader) load(file string, via []string) *node {
	text, err := l.read(file)
	if err != nil {
		*l.found = append(*l.found, diag.Finding{Pos: diag.Pos{File: file}, Message: "cannot be read: " + cause(err), Hint: "imagectl init writes a starter cluster.yaml; -f names another file"})
		return nil
	}
	return l.parse(file, text, via)
}

func (l *loader) parse(file string, text []byte, via []string) *node {
	root := parseYAML(file, text, l.found)
	if root == nil {
		return nil
	}
	ext, ok := root.member("extends")
	if !ok {
		return root
	}
	report := func(msg, hint string) {
		*l.found = append(*l.found, diag.Finding{Pos: ext.val.pos, Path: "extends", Message: msg, Hint: hint})
	}
	if ext.val.kind != scalarKind || ext.val.tag != "!!str" || ext.val.text == "" {
		return root // the decoder reports the type
	}
	base := filepath.Join(filepath.Dir(file), ext.val.text)
	if filepath.IsAbs(ext.val.text) {
		base = filepath.Clean(ext.val.text)
	}
	via = append(via, filepath.Clean(file))
	for _, v := range via {
		if v == base {
			report(fmt.Sprintf("%s extends itself: %s", base, strings.Join(append(via, base), " → ")), "remove this line from one of the files")
			return root
		}
	}
	baseText, err := l.read(base)
	if err != nil {
		report(fmt.Sprintf("%s cannot be read: %s", base, cause(err)), "the path starts at the directory of "+file)
		return root
	}
	baseRoot := l.parse(base, baseText, via)
	if baseRoot == nil {
		return root
	}
	return merge(baseRoot, root)
}

// cause is an error without the file name that the message has already.
func cause(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// merge lays one tree over another: mappings merge, lists of named things merge
// by name, everything else is replaced.
func merge(base, over *node) *node {
	switch {
	case base.kind == mappingKind && over.kind == mappingKind:
		out := &node{kind: mappingKind, pos: over.pos}
		for _, m := range base.members {
			if o, ok := over.member(m.key); ok {
				m = member{key: m.key, pos: o.pos, val: merge(m.val, o.val)}
			}
			out.members = append(out.members, m)
		}
		for _, m := range over.members {
			if _, ok := base.member(m.key); !ok {
				out.members = append(out.members, m)
			}
		}
		return out
	default:
		baseNames, overNames := base.byName(), over.byName()
		if baseNames == nil || overNames == nil {
			return over
		}
		out := &node{kind: sequenceKind, pos: over.pos}
		for _, item := range base.items {
			if o := overNames[item.name()]; o != nil {
				item = merge(item, o)
			}
			out.items = append(out.items, item)
		}
		for _, item := range over.items {
			if baseNames[item.name()] == nil {
				out.items = append(out.items, item)
			}
		}
		return out
	}
}

// byName indexes a list of mappings that have a name each. It is nil for
// anything else, a name twice included: a duplicate must survive to be reported.
func (n *node) byName() map[string]*node {
	if n.kind != sequenceKind || len(n.items) == 0 {
		return nil
	}
	out := map[string]*node{}
	for _, item := range n.items {
		name := item.name()
		if name == "" || out[name] != nil {
			return nil
		}
		out[name] = item
	}
	return out
}

func (n *node) name() string {
	if m, ok := n.member("name"); ok && m.val.kind == scalarKind {
		return m.val.text
	}
	return ""
}
