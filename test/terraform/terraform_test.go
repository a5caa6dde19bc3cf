// Package terraform reads the Terraform that the documentation shows, by the parser that
// Terraform itself has. It is a module of its own: imagectl needs no such parser.
package terraform

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

const docs = "../../docs/"

// example is a text, and where it is from.
type example struct{ name, text string }

// examples are the files, and what a page has indented after "With Terraform".
func examples(t *testing.T) (all []example) {
	t.Helper()
	files, err := filepath.Glob(docs + "examples/terraform/*.tf")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, example{path, string(b)})
	}
	pages, err := filepath.Glob(docs + "upload-*.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`(?m)^With Terraform[^\n]*:\n\n((?:    [^\n]*\n|\n)+)`)
	for _, path := range pages {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range shown.FindAllStringSubmatch(string(b), -1) {
			all = append(all, example{path, strings.TrimSpace(regexp.MustCompile(`(?m)^    `).ReplaceAllString(m[1], "")) + "\n"})
		}
	}
	if len(all) < 2 {
		t.Fatalf("there are %d examples: the test looks at the wrong place", len(all))
	}
	return all
}

func TestExamplesAreTerraform(t *testing.T) {
	for _, e := range examples(t) {
		f, bad := hclsyntax.ParseConfig([]byte(e.text), e.name, hcl.InitialPos)
		if bad.HasErrors() {
			t.Errorf("%s: %v", e.name, bad)
			continue
		}
		if got := string(hclwrite.Format([]byte(e.text))); got != e.text {
			t.Errorf("%s is not as terraform fmt writes it:\n%s", e.name, got)
		}
		// What a resource refers to is declared in the same example.
		body := f.Body.(*hclsyntax.Body)
		declared := map[string]bool{}
		for _, b := range body.Blocks {
			switch b.Type {
			case "terraform", "provider":
			case "data", "resource":
				if len(b.Labels) != 2 {
					t.Errorf("%s: %s has the labels %q, want a type and a name", e.name, b.Type, b.Labels)
					continue
				}
				declared[b.Type+"."+strings.Join(b.Labels, ".")] = true
			default:
				t.Errorf("%s: block %q is none of Terraform's that we use", e.name, b.Type)
			}
		}
		refers(t, e.name, body, declared)
	}
}

// refers wants each data.TYPE.NAME to be declared.
func refers(t *testing.T, name string, body *hclsyntax.Body, declared map[string]bool) {
	t.Helper()
	for _, a := range body.Attributes {
		for _, v := range a.Expr.Variables() {
			if v.RootName() != "data" || len(v) < 3 {
				continue
			}
			kind, isKind := v[1].(hcl.TraverseAttr)
			what, isName := v[2].(hcl.TraverseAttr)
			if !isKind || !isName || !declared["data."+kind.Name+"."+what.Name] {
				t.Errorf("%s: %s refers to what is not declared", name, a.Name)
			}
		}
	}
	for _, b := range body.Blocks {
		refers(t, name, b.Body, declared)
	}
}
