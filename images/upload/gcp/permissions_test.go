package gcp

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// The page has each permission that an upload asks for, by the names of Google's IAM, and no
// other.
func TestPermissionsOfThePage(t *testing.T) {
	t.Parallel()
	listed := uploadtest.Listed(t, "upload-gcp.md", "Permissions", ".", regexp.MustCompile(`^[a-zA-Z.]+$`))
	uploadtest.Permissions(t, newLab(t).platform, permissions, listed)
}

// permissions are the names of what a request asks for. A session's own URL, which has what
// it needs, asks for nothing.
func permissions(r *http.Request) []string {
	if rest, is := strings.CutPrefix(r.URL.Path, prefix); is {
		return computePermissions(r.Method, strings.Split(strings.TrimPrefix(rest, "global/"), "/"))
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/upload/storage/v1/"):
		if r.Method == http.MethodPost {
			return []string{"storage.objects.create"}
		}
	case strings.HasSuffix(r.URL.Path, "/o"):
		return []string{"storage.objects.list"}
	case strings.HasPrefix(r.URL.Path, "/storage/v1/"):
		return []string{"storage.objects." + map[string]string{http.MethodGet: "get", http.MethodDelete: "delete", http.MethodPatch: "update"}[r.Method]}
	}
	return nil
}

func computePermissions(method string, steps []string) []string {
	kind := map[string]string{"operations": "globalOperations", "aggregated": "disks"}[steps[0]]
	if kind == "" {
		kind = steps[0]
	}
	verb := map[string]string{http.MethodGet: "get", http.MethodDelete: "delete", http.MethodPatch: "update", http.MethodPost: "create"}[method]
	switch {
	case method == http.MethodGet && (len(steps) == 1 || steps[0] == "aggregated"):
		verb = "list"
	case len(steps) > 2 && steps[1] == "family":
		verb = "getFromFamily"
	case len(steps) > 2:
		verb = steps[2]
	}
	if verb == "create" {
		// An image is made with its labels.
		return []string{"compute.images.create", "compute.images.setLabels"}
	}
	return []string{"compute." + kind + "." + verb}
}
