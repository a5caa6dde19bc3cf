package cli

import (
	"testing"

	"github.com/imagectl/imagectl/butane/cluster"
)

// What one upload has left at a place is not looked for at another.
func TestJournalsTellPlacesApart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind, option string
	}{{"s3", "prefix"}, {"vsphere", "datacenter"}, {"vsphere", "folder"}, {"openstack", "cloud"}, {"gcp", "project"}} {
		at := func(value string) string {
			return destination{Upload: cluster.Upload{Name: "a", Type: tt.kind, Endpoint: "https://a", Bucket: "b", Options: map[string]string{tt.option: value}}}.key()
		}
		if at("one") == at("two") || at("one") == at("") || at("one") != at("one") {
			t.Errorf("%s: option %s does not tell places apart", tt.kind, tt.option)
		}
	}
}
