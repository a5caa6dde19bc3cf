package opennebula_test

import (
	"io"
	"net/http"
	"regexp"
	"testing"

	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

var methodName = regexp.MustCompile(`<methodName>([a-z.]+)</methodName>`)

// The page has each call that an upload makes, and no other.
func TestPermissionsOfThePage(t *testing.T) {
	t.Parallel()
	listed := uploadtest.Listed(t, "upload-opennebula.md", "Permissions", ".", regexp.MustCompile(`^one\.[a-z.]+$`))
	uploadtest.Permissions(t, start, func(r *http.Request) []string {
		body, err := r.GetBody()
		if err != nil {
			t.Error(err)
			return nil
		}
		text, err := io.ReadAll(body)
		m := methodName.FindSubmatch(text)
		if err != nil || m == nil {
			t.Errorf("a request is no call: %s, %v", text, err)
			return nil
		}
		return []string{string(m[1])}
	}, listed)
}
