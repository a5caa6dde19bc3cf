package cluster

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Ignition does at each start of a diskless machine what it does once on others: what makes
// file systems there would take away what is on them.
func TestADisklessMachinesSnippetsWriteNoDisk(t *testing.T) {
	t.Parallel()
	const data = "variant: flatcar\nversion: 1.1.0\nstorage:\n  filesystems:\n    - {device: /dev/sdb, format: ext4, path: /var/data}\n"
	const files = "variant: flatcar\nversion: 1.1.0\nstorage:\n  files:\n    - {path: /etc/motd, contents: {inline: hello}}\n"
	for _, tt := range []struct {
		name, content string
		want          []string
	}{
		{"a file", files, nil},
		{"a file system", data, []string{"error: machines[1].diskless: data.bu of role worker has storage.filesystems, which Ignition does at every start of a diskless machine: it would write its disks again and again"}},
	} {
		text := edit(t, "disk: {path: /dev/vda}\n\n# addons", "diskless: true\n\nidentity: {policy: tpm}\n# addons")
		text = strings.Replace(text, "  worker:\n", "  worker:\n    butane: [data.bu]\n", 1)
		if !strings.Contains(text, "data.bu") {
			t.Fatal("the starter has no role worker")
		}
		_, found := Parse(fake{"cluster.yaml": text, "data.bu": tt.content}.read, "cluster.yaml")
		if diff := cmp.Diff(tt.want, texts(found)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
