package agent

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// stepNames are the names of all steps that this package's sources make: a literal, a constant, what a
// variable of the function is set to, or what its callers give it.
func stepNames(t *testing.T) []string {
	t.Helper()
	files := sources(t)
	constants, funcs := map[string]string{}, []*ast.FuncDecl{}
	for _, f := range files {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				funcs = append(funcs, d)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if v, ok := s.(*ast.ValueSpec); ok && d.Tok == token.CONST && len(v.Values) == len(v.Names) {
						for i, name := range v.Names {
							constants[name.Name] = literal(v.Values[i])
						}
					}
				}
			}
		}
	}
	text := func(e ast.Expr) string {
		if id, ok := e.(*ast.Ident); ok {
			return constants[id.Name]
		}
		return literal(e)
	}
	var names []string
	for _, f := range funcs {
		for _, e := range stepFields(f) {
			if s := text(e); s != "" {
				names = append(names, s)
				continue
			}
			id, ok := e.(*ast.Ident)
			found := false
			if ok {
				given := append(assigned(f, id.Name), passed(files, f, id.Name)...)
				for _, g := range given {
					if s := text(g); s != "" {
						names, found = append(names, s), true
					}
				}
			}
			if !found {
				t.Fatalf("nobody can tell the name of the step that %s makes", f.Name.Name)
			}
		}
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) < 35 {
		t.Fatalf("only %d steps are found: %v", len(names), names)
	}
	return names
}

func sources(t *testing.T) []*ast.File {
	t.Helper()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var out []*ast.File
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

// literal is a string's value; empty for anything else.
func literal(e ast.Expr) string {
	b, ok := e.(*ast.BasicLit)
	if !ok || b.Kind != token.STRING {
		return ""
	}
	s, err := strconv.Unquote(b.Value)
	if err != nil {
		return ""
	}
	return s
}

// stepFields are what a function gives the field Name of a Step.
func stepFields(f *ast.FuncDecl) (out []ast.Expr) {
	ast.Inspect(f, func(n ast.Node) bool {
		lit, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		if id, ok := lit.Type.(*ast.Ident); !ok || id.Name != "Step" {
			return true
		}
		for _, e := range lit.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok && kv.Key.(*ast.Ident).Name == "Name" {
				out = append(out, kv.Value)
			}
		}
		return true
	})
	return out
}

// assigned is what a variable of a function is set to.
func assigned(f *ast.FuncDecl, name string) (out []ast.Expr) {
	ast.Inspect(f, func(n ast.Node) bool {
		if a, ok := n.(*ast.AssignStmt); ok {
			for i, l := range a.Lhs {
				if id, ok := l.(*ast.Ident); ok && id.Name == name && i < len(a.Rhs) {
					out = append(out, a.Rhs[i])
				}
			}
		}
		return true
	})
	return out
}

// passed is what callers give a parameter of a function.
func passed(files []*ast.File, f *ast.FuncDecl, name string) (out []ast.Expr) {
	at := -1
	i := 0
	for _, field := range f.Type.Params.List {
		for _, id := range field.Names {
			if id.Name == name {
				at = i
			}
			i++
		}
	}
	if at < 0 {
		return nil
	}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok || at >= len(c.Args) {
				return true
			}
			called := ""
			switch fun := c.Fun.(type) {
			case *ast.Ident:
				called = fun.Name
			case *ast.SelectorExpr:
				called = fun.Sel.Name
			}
			if called == f.Name.Name {
				out = append(out, c.Args[at])
			}
			return true
		})
	}
	return out
}
