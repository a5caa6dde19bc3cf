package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/butane/diag"
)

// place is where a raw value stands. Raw structs embed it; the decoder fills it.
type place struct {
	Pos  diag.Pos
	Path string
}

func (p *place) stand(pos diag.Pos, path string) { *p = place{Pos: pos, Path: path} }

// field is one scalar of the file. Set is false when the key is absent or its
// value was refused.
type field[T any] struct {
	place
	V   T
	Set bool
}

// or returns the value, or a default.
func (f field[T]) or(def T) T {
	if f.Set {
		return f.V
	}
	return def
}

// byteSize is a number of bytes, written 120GB or 64GiB.
type byteSize int64

// dict is a mapping whose keys the user chooses, in the order of the file.
type dict[T any] []dictEntry[T]

type dictEntry[T any] struct {
	place // of the key
	Key   string
	V     T
}

// custom is a raw value that decodes itself.
type custom interface {
	decodeNode(d *decoder, n *node, path string)
}

// decoder turns a tree into raw structs and reports whatever does not fit.
//
// The tag of a field is its key, then any of: "required" (its absence is an
// error) and "later" (its type is checked, then it is refused as not supported
// yet, so that a file never promises what is not done).
type decoder struct {
	found *diag.List
}

func (d *decoder) add(pos diag.Pos, path, hint, format string, args ...any) {
	*d.found = append(*d.found, diag.Finding{Pos: pos, Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

func (d *decoder) warn(at place, hint, format string, args ...any) {
	*d.found = append(*d.found, diag.Finding{Severity: diag.Warning, Pos: at.Pos, Path: at.Path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// reported says whether something at or below a path was refused already, so
// that what follows from it is not reported as well.
func (d *decoder) reported(path string) bool {
	for _, f := range *d.found {
		rest, ok := strings.CutPrefix(f.Path, path)
		if ok && f.Severity == diag.Error && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}

func (d *decoder) value(n *node, path string, v reflect.Value) {
	if c, ok := v.Addr().Interface().(custom); ok {
		c.decodeNode(d, n, path)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, path, v)
	case reflect.Slice:
		if n.kind != sequenceKind {
			d.wrongKind(n, path, sequenceKind)
			return
		}
		for i, item := range n.items {
			el := reflect.New(v.Type().Elem()).Elem()
			d.value(item, fmt.Sprintf("%s[%d]", path, i), el)
			v.Set(reflect.Append(v, el))
		}
	default:
		// Only a mistake in raw.go comes here; TestRawTypesCanAllBeDecoded looks for it.
		d.add(n.pos, path, "", "imagectl cannot read values of type %s", v.Type())
	}
}

func (d *decoder) wrongKind(n *node, path string, want kind) {
	hint := ""
	switch {
	case n.kind == scalarKind && n.tag == "!!null":
		d.add(n.pos, path, "remove the key, or give it a value", "is empty, want %s", want)
		return
	case want == sequenceKind && n.kind == scalarKind:
		hint = lastKey(path) + ": [" + n.text + "]"
	case want == sequenceKind:
		hint = "begin each item with \"- \""
	}
	d.add(n.pos, path, hint, "is %s, want %s", n.kind, want)
}

func lastKey(path string) string {
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		path = path[i+1:]
	}
	key, _, _ := strings.Cut(path, "[")
	return key
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) structure(n *node, path string, v reflect.Value) {
	t := v.Type()
	if p, ok := v.Addr().Interface().(interface{ stand(diag.Pos, string) }); ok {
		p.stand(n.pos, path)
	}
	if n.kind != mappingKind {
		d.wrongKind(n, path, mappingKind)
		return
	}
	known := map[string]bool{}
	var names []string
	for i := range t.NumField() {
		key, options, _ := strings.Cut(t.Field(i).Tag.Get("key"), ",")
		if key == "" {
			continue
		}
		known[key], names = true, append(names, key)
		m, ok := n.member(key)
		if !ok {
			if options == "required" {
				d.add(n.pos, path, "", "required key %q is missing", key)
			}
			continue
		}
		before := len(*d.found)
		d.value(m.val, join(path, key), v.Field(i))
		if options == "later" && len(*d.found) == before {
			d.add(m.pos, join(path, key), "remove it for now", "is not supported yet")
		}
	}
	for _, m := range n.members {
		if known[m.key] {
			continue
		}
		hint := "known here: " + strings.Join(names, ", ")
		if near, ok := nearest(m.key, names); ok {
			hint = "did you mean " + near + "?"
		}
		d.add(m.pos, join(path, m.key), hint, "unknown key %q", m.key)
	}
}

func (e *dict[T]) decodeNode(d *decoder, n *node, path string) {
	if n.kind != mappingKind {
		d.wrongKind(n, path, mappingKind)
		return
	}
	for _, m := range n.members {
		entry := dictEntry[T]{place: place{Pos: m.pos, Path: join(path, m.key)}, Key: m.key}
		d.value(m.val, entry.Path, reflect.ValueOf(&entry.V).Elem())
		*e = append(*e, entry)
	}
}

func (f *field[T]) decodeNode(d *decoder, n *node, path string) {
	f.place = place{Pos: n.pos, Path: path}
	if n.kind != scalarKind || n.tag == "!!null" {
		d.wrongKind(n, path, scalarKind)
		return
	}
	bad := func(want, hint string) { d.add(n.pos, path, hint, "%q is not %s", n.text, want) }
	var err error
	switch v := any(&f.V).(type) {
	case *int:
		if n.tag != "!!int" {
			bad("a whole number", "")
			return
		}
		if *v, err = strconv.Atoi(n.text); err != nil {
			bad("a whole decimal number", "")
			return
		}
	case *bool:
		if n.tag != "!!bool" {
			bad("true or false", "")
			return
		}
		*v = strings.EqualFold(n.text, "true")
	default:
		if n.tag != "!!str" {
			d.add(n.pos, path, "quote it: "+strconv.Quote(n.text), "%s is %s for YAML, want text", n.text, tagName(n.tag))
			return
		}
		if want, hint, ok := fromText(n.text, v); !ok {
			bad(want, hint)
			return
		}
	}
	f.Set = true
}

// tagName says what YAML took a scalar for.
func tagName(tag string) string {
	switch tag {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "a truth value"
	case "!!timestamp":
		return "a date"
	default:
		return "something else (" + tag + ")"
	}
}

// fromText parses the text of a scalar into what v points to. When it is not ok,
// want says what was expected.
func fromText(s string, v any) (want, hint string, ok bool) {
	var err error
	switch v := v.(type) {
	case *string:
		*v = s
		return "text without control characters", "", s == strings.Map(printableOnly, s)
	case *netip.Addr:
		*v, err = netip.ParseAddr(s)
		return "an IP address", "such as 10.0.0.10", err == nil && v.Zone() == "" && !v.Is4In6()
	case *netip.Prefix:
		*v, err = netip.ParsePrefix(s)
		if err == nil && *v != v.Masked() {
			return "a network: bits are set behind the prefix length", v.Masked().String(), false
		}
		return "a network in CIDR form", "such as 10.0.0.0/24", err == nil
	case *net.HardwareAddr:
		*v, err = net.ParseMAC(s)
		return "a MAC address", "such as 52:54:00:12:34:56", err == nil && len(*v) == 6
	case *time.Duration:
		*v, err = time.ParseDuration(s)
		return "a duration", "such as 90s or 12h", err == nil
	case *byteSize:
		*v, ok = parseSize(s)
		return "a size", "such as 100GB or 64GiB", ok
	default:
		return fmt.Sprintf("readable: imagectl has no parser for %T", v), "", false
	}
}

func printableOnly(r rune) rune {
	if r < ' ' || r == 0x7f {
		return -1
	}
	return r
}

// parseSize reads 100GB (powers of ten) and 64GiB (powers of two).
func parseSize(s string) (byteSize, bool) {
	units := []struct {
		suffix string
		factor int64
	}{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
		{"KB", 1e3}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	}
	for _, u := range units {
		num, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(num), 10, 31)
		if err != nil || n == 0 || int64(n) > (1<<62)/u.factor {
			return 0, false
		}
		return byteSize(int64(n) * u.factor), true
	}
	return 0, false
}

// nearest finds the name that a misspelt one most likely meant.
func nearest(got string, names []string) (string, bool) {
	best, bestDistance := "", 3
	for _, name := range names {
		dist := distance(strings.ToLower(got), strings.ToLower(name))
		if dist < bestDistance && dist < len(name) {
			best, bestDistance = name, dist
		}
	}
	return best, best != ""
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
