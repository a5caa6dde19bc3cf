package cluster

import (
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "write cluster.schema.json anew")

// schemer makes the JSON Schema of cluster.yaml out of the raw types, which are what the parser
// reads with, and of docs/cluster-yaml.md, which says what each key means.
type schemer struct {
	docs map[string]string
	defs map[string]any
}

// documented reads the rows of docs/cluster-yaml.md.
func documented(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "cluster-yaml.md"))
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|([^|]*)\\|([^|]*)\\|$").FindAllStringSubmatch(string(b), -1) {
		text := strings.TrimSpace(link.ReplaceAllString(m[2], "$1"))
		if def := strings.TrimSpace(m[3]); def != "" && def != "required" {
			text += " (default: " + strings.Trim(def, "`") + ")"
		}
		rows[m[1]] = strings.NewReplacer("`", "", "**", "").Replace(text)
	}
	return rows
}

// of is the schema of a raw type. partial leaves out what is required: a file that extends
// another one needs to say only what differs.
func (s *schemer) of(typ reflect.Type, path string, partial bool) map[string]any {
	if typ.Kind() == reflect.Slice {
		el := typ.Elem()
		if v, ok := el.FieldByName("V"); ok && strings.HasPrefix(el.Name(), "dictEntry") {
			return map[string]any{"type": "object", "additionalProperties": s.of(v.Type, path+".NAME", partial)}
		}
		return map[string]any{"type": "array", "items": s.of(el, path+"[]", partial)}
	}
	switch typ {
	case reflect.TypeFor[rawString]():
		return map[string]any{"type": "string"}
	case reflect.TypeFor[rawInt]():
		return map[string]any{"type": "integer"}
	case reflect.TypeFor[rawBool]():
		return map[string]any{"type": "boolean"}
	case reflect.TypeFor[rawAddr]():
		return map[string]any{"type": "string", "anyOf": []any{map[string]any{"format": "ipv4"}, map[string]any{"format": "ipv6"}}}
	case reflect.TypeFor[rawPrefix]():
		return map[string]any{"type": "string", "pattern": `^[0-9A-Fa-f:.]+/[0-9]{1,3}$`}
	case reflect.TypeFor[rawMAC]():
		return map[string]any{"type": "string", "pattern": `^(([0-9A-Fa-f]{2}:){5}|([0-9A-Fa-f]{2}-){5})[0-9A-Fa-f]{2}$|^([0-9A-Fa-f]{4}[.]){2}[0-9A-Fa-f]{4}$`}
	case reflect.TypeFor[rawSize]():
		return map[string]any{"type": "string", "pattern": `^[0-9]+ *(KiB|MiB|GiB|TiB|KB|kB|MB|GB|TB)$`}
	case reflect.TypeFor[rawDuration]():
		return map[string]any{"type": "string", "pattern": `^[+-]?([0-9]*[.]?[0-9]+[.]?(ns|us|µs|μs|ms|s|m|h))+$|^[+-]?0$`}
	}
	name := strings.TrimPrefix(typ.Name(), "raw")
	if partial {
		name += ".partial"
	}
	// What a type means depends on where it is, and there is little of it twice.
	name += "@" + strings.NewReplacer("[]", "", ".", "_").Replace(path)
	ref := map[string]any{"$ref": "#/$defs/" + name}
	if _, done := s.defs[name]; done {
		return ref
	}
	s.defs[name] = nil
	s.defs[name] = s.object(typ, path, partial)
	return ref
}

func (s *schemer) object(typ reflect.Type, path string, partial bool) map[string]any {
	properties, required := map[string]any{}, []any{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		key, option, _ := strings.Cut(f.Tag.Get("key"), ",")
		if key == "" {
			continue
		}
		at := join(path, key)
		property := s.of(f.Type, at, partial)
		if option == "later" {
			property = map[string]any{"not": map[string]any{}}
		}
		if text := s.docs[s.documentedAs(at)]; text != "" {
			property["description"] = text
		}
		properties[key] = property
		if option == "required" && !partial {
			required = append(required, key)
		}
	}
	out := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		out["required"] = required
	}
	if typ == reflect.TypeFor[rawSecret]() {
		var one []any
		for _, key := range []string{"file", "env", "age"} {
			one = append(one, map[string]any{"required": []any{key}})
		}
		out["oneOf"] = one
	}
	return out
}

// documentedAs is the path of a key's row: the network of a role and of a machine is that of
// all nodes, and secrets are alike.
func (s *schemer) documentedAs(path string) string {
	if _, rest, ok := strings.Cut(path, ".network."); ok {
		return "network." + rest
	}
	return path
}

func makeSchema(t *testing.T) []byte {
	t.Helper()
	s := &schemer{docs: documented(t), defs: map[string]any{}}
	whole, partial := s.of(reflect.TypeFor[rawFile](), "", false), s.of(reflect.TypeFor[rawFile](), "", true)
	b, err := json.MarshalIndent(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cluster.yaml of imagectl",
		"description": "Shapes and names only: imagectl validate knows more, such as which words a key takes and what belongs together.",
		"if":          map[string]any{"required": []any{"extends"}}, "then": partial, "else": whole, "$defs": s.defs,
	}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

func TestTheSchemaIsOfTheTypesThatAreParsed(t *testing.T) {
	t.Parallel()
	got := makeSchema(t)
	if *update {
		if err := os.WriteFile("cluster.schema.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(got, Schema) {
		t.Error("cluster.schema.json is not what the types and docs/cluster-yaml.md say: go test ./butane/cluster -run Schema -update")
	}
}

// validator is of another hand (github.com/santhosh-tekuri/jsonschema).
func validator(t *testing.T) func(text string) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("cluster.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("cluster.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return func(text string) error {
		var v any
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			return err
		}
		return schema.Validate(v)
	}
}

// The starter is valid, and so is every piece of a cluster.yaml that the documentation shows.
func TestEveryExampleFitsTheSchema(t *testing.T) {
	t.Parallel()
	validate := validator(t)
	if err := validate(string(Minimal)); err != nil {
		t.Errorf("the starter: %v", err)
	}
	top := map[string]bool{}
	for i := range reflect.TypeFor[rawFile]().NumField() {
		key, _, _ := strings.Cut(reflect.TypeFor[rawFile]().Field(i).Tag.Get("key"), ",")
		top[key] = true
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	pieces := 0
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			if e != nil && (e.Name() == ".git" || e.Name() == "bin") {
				return filepath.SkipDir
			}
			return err
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range block.FindAllStringSubmatch(string(b), -1) {
			var keys map[string]any
			if strings.Contains(m[1], "…") || yaml.Unmarshal([]byte(m[1]), &keys) != nil {
				continue // shortened, or not YAML by itself
			}
			ours := len(keys) > 0
			for key := range keys {
				ours = ours && top[key] // else of Kubernetes, or of Butane
			}
			if !ours {
				continue
			}
			pieces++
			text := m[1]
			if _, extends := keys["extends"]; !extends {
				text += "\nextends: base.yaml\n"
			}
			if err := validate(text); err != nil {
				t.Errorf("%s: %v in\n%s", path, err, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pieces of the documentation", pieces)
	if pieces < 10 {
		t.Errorf("only %d pieces of the documentation are of cluster.yaml", pieces)
	}
}

// What is wrong by its shape the schema refuses, as the parser does.
func TestTheSchemaRefusesWhatTheParserRefuses(t *testing.T) {
	t.Parallel()
	validate := validator(t)
	for name, change := range map[string][2]string{
		"an unknown key":                 {"cluster: lab\n", "cluster: lab\nclutser: lab\n"},
		"an unknown key further down":    {"  podCIDR:", "  podCidr:"},
		"a required key is missing":      {"cluster: lab\n", ""},
		"a number for a word":            {"cluster: lab\n", "cluster: 7\n"},
		"a word for a number":            {"version: 1\n", "version: one\n"},
		"a word for a list":              {"cluster: lab\n", "cluster: lab\naddons: flannel\n"},
		"a list for a mapping":           {"cluster: lab\n", "cluster: lab\nidentity: [approve]\n"},
		"no MAC address":                 {"52:54:00:00:00:11", "52:54:00:00:00"},
		"no address":                     {"address: 10.0.0.11", "address: 10.0.0.256"},
		"no network":                     {"10.244.0.0/16", "10.244.0.0"},
		"nothing for a value":            {"cluster: lab\n", "cluster:\n"},
		"a secret that is written out":   {"cluster: lab\n", "cluster: lab\nupload: [{name: u, type: s3, password: geheim}]\n"},
		"a secret in two places":         {"cluster: lab\n", "cluster: lab\nupload: [{name: u, type: s3, password: {env: A, file: b}}]\n"},
		"a level of Pod Security's name": {"  podCIDR:", "  podSecurity: {enforced: baseline}\n  podCIDR:"},
		"namespaces that are no list":    {"  podCIDR:", "  podSecurity: {exempt: rook-ceph}\n  podCIDR:"},
		"a machine without a disk rule":  {"cluster: lab\n", "cluster: lab\nextends: base.yaml\nmachines: [{name: x, disks: {}}]\n"},
		"what is not supported yet":      {"cluster: lab\n", "cluster: lab\noperators: [{name: ada}]\n"},
	} {
		text := edit(t, change[0], change[1])
		if err := validate(text); err == nil {
			t.Errorf("%s: the schema takes it", name)
		}
		if _, found := Parse(fake{"cluster.yaml": text, "base.yaml": string(Minimal)}.read, "cluster.yaml"); found.Err() == nil {
			t.Errorf("%s: the parser takes it", name)
		}
	}
}
