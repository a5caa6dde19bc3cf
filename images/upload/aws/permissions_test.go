package aws

import (
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// The page has each action that an upload asks for, by Amazon's names for them (Service
// Authorization Reference), and no other.
func TestPermissionsOfThePage(t *testing.T) {
	t.Parallel()
	listed := uploadtest.Listed(t, "upload-aws.md", "Permissions", ":", regexp.MustCompile(`^([a-z0-9]+:)?[A-Z][A-Za-z]+$`))
	uploadtest.Permissions(t, func(t *testing.T) uploadtest.Platform { return platform(t, newFake()) }, func(r *http.Request) []string {
		return actions(t, r)
	}, listed)
}

// actions are the names of what a request asks for. Whatever is made with tags asks for
// CreateTags, too.
func actions(t *testing.T, r *http.Request) []string {
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		return []string{"ssm:" + strings.TrimPrefix(target, "AmazonSSM.")}
	}
	if rest, is := strings.CutPrefix(r.URL.Path, "/snapshots"); is {
		switch {
		case r.Method == http.MethodPost && rest == "":
			return []string{"ebs:StartSnapshot", "ec2:CreateTags"}
		case r.Method == http.MethodPost:
			return []string{"ebs:CompleteSnapshot"}
		case r.Method == http.MethodPut:
			return []string{"ebs:PutSnapshotBlock"}
		case strings.HasSuffix(rest, "/blocks"):
			return []string{"ebs:ListSnapshotBlocks"}
		}
		return []string{"ebs:GetSnapshotBlock"}
	}
	body, err := r.GetBody()
	if err != nil {
		t.Error(err)
		return nil
	}
	text, err := io.ReadAll(body)
	if err != nil {
		t.Error(err)
	}
	form, err := url.ParseQuery(string(text))
	if err != nil {
		t.Error(err)
	}
	all := []string{"ec2:" + form.Get("Action")}
	if form.Has("TagSpecification.1.ResourceType") {
		all = append(all, "ec2:CreateTags")
	}
	return all
}
