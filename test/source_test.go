package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// walkSource calls f for every hand-written production file of ours.
func walkSource(t *testing.T, f func(path string, fset *token.FileSet, file *ast.File)) {
	t.Helper()
	seen := 0
	for _, dir := range []string{"cmd", "butane", "images", "pxe", "bootstrap"} {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				strings.HasSuffix(path, ".pb.go") || strings.HasSuffix(path, ".connect.go") {
				return nil
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			seen++
			f(strings.TrimPrefix(path, "../"), fset, file)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 10 {
		t.Fatalf("found %d source files; the test looks at the wrong tree", seen)
	}
}

// impossible are files that may panic, on a mistake in the same file that no
// input can cause: encoding/binary refuses a structure of variable size.
var impossible = []string{"images/btrfs/format.go", "images/ext4/format.go", "images/squashfs/metadata.go"}

func TestLibrariesNeitherExitNorPanicNorRunAtImport(t *testing.T) {
	walkSource(t, func(path string, fset *token.FileSet, file *ast.File) {
		isMain := file.Name.Name == "main"
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					t.Errorf("%s: func init(): nothing runs at import", fset.Position(n.Pos()))
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "panic" && id.Obj == nil && !slices.Contains(impossible, path) {
					t.Errorf("%s: panic: return an error", fset.Position(n.Pos()))
				}
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || isMain {
					return true
				}
				pkg, ok := sel.X.(*ast.Ident)
				if !ok || pkg.Obj != nil {
					return true
				}
				call := pkg.Name + "." + sel.Sel.Name
				if call == "os.Exit" || strings.HasPrefix(call, "log.Fatal") || strings.HasPrefix(call, "log.Panic") {
					t.Errorf("%s: %s: only main ends the process", fset.Position(n.Pos()), call)
				}
			}
			return true
		})
	})
}

// unlisted may serve by a mux that lists nothing: the list itself, and the nodes' API, which
// is one service of the contract.
var unlisted = []string{"pxe/routes/routes.go", "bootstrap/nodeapi/nodeapi.go"}

// What strangers may ask for is found by the lists of pxe/routes: a page in no list would be
// walked by no test.
func TestServersListWhatTheyServe(t *testing.T) {
	walkSource(t, func(path string, fset *token.FileSet, file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || slices.Contains(unlisted, path) {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if ok && pkg.Obj == nil && pkg.Name == "http" && slices.Contains([]string{"NewServeMux", "ServeMux", "DefaultServeMux", "Handle", "HandleFunc"}, sel.Sel.Name) {
				t.Errorf("%s: http.%s: serve by a routes.Mux", fset.Position(n.Pos()), sel.Sel.Name)
			}
			return true
		})
	})
}

func TestPackagesAreNamedAfterWhatTheyProvide(t *testing.T) {
	walkSource(t, func(path string, _ *token.FileSet, _ *ast.File) {
		for _, part := range strings.Split(strings.TrimSuffix(path, ".go"), "/") {
			switch part {
			case "util", "utils", "common", "helpers", "misc", "types":
				t.Errorf("%s: %q is a drawer, not a name", path, part)
			}
		}
	})
}

func TestEveryPackageSaysWhatItDoes(t *testing.T) {
	documented := map[string]bool{}
	walkSource(t, func(path string, _ *token.FileSet, file *ast.File) {
		dir := filepath.Dir(path)
		documented[dir] = documented[dir] || file.Doc != nil
	})
	for dir, ok := range documented {
		if !ok && !strings.HasSuffix(dir, "/apiconnect") {
			t.Errorf("%s has no package comment", dir)
		}
	}
}
