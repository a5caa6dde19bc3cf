package cluster

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func TestEveryKeyIsDocumentedWithItsState(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "cluster-yaml.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|(.*)$").FindAllStringSubmatch(string(b), -1) {
		rows[m[1]] = m[2]
	}
	known := map[string]bool{}
	walkRaw(t, func(path string, f reflect.StructField, option string) {
		// The network of a role and of a machine is documented once, and so are secrets.
		if strings.Contains(path, ".network.") {
			return
		}
		for _, parent := range []string{"password.", "key.", "pin."} {
			if strings.Contains(path, "."+parent) {
				return
			}
		}
		known[path] = true
		row, ok := rows[path]
		switch {
		case !ok:
			t.Errorf("docs/cluster-yaml.md has no row for %s", path)
		case option == "later" && !strings.Contains(row, "**not yet**"):
			t.Errorf("docs/cluster-yaml.md does not say that %s is not supported yet", path)
		case option != "later" && strings.HasPrefix(strings.TrimSpace(row), "**not yet**"):
			t.Errorf("docs/cluster-yaml.md says that %s is not supported yet, and it is", path)
		}
	})
	for path := range rows {
		if !known[path] {
			t.Errorf("docs/cluster-yaml.md documents %s, which does not exist", path)
		}
	}
}
