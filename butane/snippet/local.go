package snippet

import (
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Locals lists what a Butane file embeds from its own directory: the values of
// local: and its relatives, sorted, each once. One may be a directory (a tree).
func Locals(content []byte) ([]string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(content, &doc); err != nil {
		return nil, fmt.Errorf("parsing Butane: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var out []string
	collectLocals(&doc, &out)
	slices.Sort(out)
	return slices.Compact(out), nil
}

// collectLocals walks a document. Butane's schema (base v0_5) uses these keys for
// nothing else, so where they stand does not matter.
func collectLocals(n *yaml.Node, out *[]string) {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			switch n.Content[i].Value {
			case "local", "contents_local", "ssh_authorized_keys_local":
				for _, v := range append([]*yaml.Node{n.Content[i+1]}, n.Content[i+1].Content...) {
					if v.Kind == yaml.AliasNode {
						v = v.Alias
					}
					if v.Kind == yaml.ScalarNode && v.Value != "" {
						*out = append(*out, v.Value)
					}
				}
			}
		}
	}
	for _, c := range n.Content {
		collectLocals(c, out)
	}
}
