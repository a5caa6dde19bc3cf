package snippet

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLocalsFindsEveryWayToEmbedAFile(t *testing.T) {
	t.Parallel()
	got, err := Locals([]byte(`variant: flatcar
version: 1.1.0
storage:
  files:
    - path: /etc/a
      contents: {local: files/a}
      append: [{local: files/b}, {inline: local}]
    - path: /etc/a2
      contents: {local: files/a}
  trees:
    - {local: tree, path: /opt}
systemd:
  units:
    - name: x.service
      contents_local: x.service
      dropins: [{name: 10.conf, contents_local: 10.conf}]
`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, []string{"10.conf", "files/a", "files/b", "tree", "x.service"}); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
}
