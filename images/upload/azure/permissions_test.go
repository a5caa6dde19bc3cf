package azure

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// The page has each action on Microsoft.Compute that an upload asks for, by the names of
// roles, and no other.
func TestPermissionsOfThePage(t *testing.T) {
	t.Parallel()
	var listed []string
	for _, l := range uploadtest.Listed(t, "upload-azure.md", "Permissions", "/", regexp.MustCompile(`^[A-Za-z.]+(/[A-Za-z*]+)*$`)) {
		listed = append(listed, strings.TrimPrefix(l, "Microsoft.Compute/"))
	}
	uploadtest.Permissions(t, func(t *testing.T) uploadtest.Platform {
		f := newFake()
		f.url = "http://azure.test"
		return platform(t, f)
	}, action, listed)
}

// action is the name of what a request asks for: the kinds of a resource's path without
// the names, and what is done. Signing in, blobs with a signature in their URL, and asking
// how far something is need nothing.
func action(r *http.Request) []string {
	_, path, is := strings.Cut(r.URL.Path, "/providers/Microsoft.Compute/")
	if !is || strings.Contains(path, "/operations/") {
		return nil
	}
	steps := strings.Split(path, "/")
	var kinds []string
	for i := 0; i < len(steps); i += 2 {
		kinds = append(kinds, steps[i])
	}
	verb := map[string]string{http.MethodGet: "read", http.MethodPut: "write", http.MethodPatch: "write", http.MethodDelete: "delete", http.MethodPost: "action"}[r.Method]
	return []string{strings.Join(append(kinds, verb), "/")}
}
