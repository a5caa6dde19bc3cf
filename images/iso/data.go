package iso

import (
	"fmt"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// maxData bounds the file of a medium that is made in memory, in bytes.
const maxData = 1 << 20

// Data makes a small volume with one file at its root, which nothing boots from: what
// platforms attach to machines to tell them something. The name may hold a minus
// sign, too; Linux shows it in lower case. Equal arguments give equal bytes.
func Data(label, name string, content []byte, modTime time.Time) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("making an ISO 9660 image of %s: %w", name, err)
	}
	switch {
	case label == "" || len(label) > 32 || strings.Trim(label, letters) != "":
		return fail(fmt.Errorf("the label %q is not 1 to 32 of A-Z, 0-9 and _", label))
	case name == "" || len(name) > 30 || strings.Trim(name, letters+"-") != "":
		return fail(fmt.Errorf("the name is not 1 to 30 of A-Z, 0-9, _ and -"))
	case len(content) == 0 || len(content) > maxData:
		return fail(fmt.Errorf("it has %d bytes, want 1 to %d", len(content), maxData))
	}
	t := new(fstree.Tree)
	if err := t.AddFile(name, 0o444, fstree.Bytes(content)); err != nil {
		return fail(err)
	}
	root := t.Root()
	l := &layout{
		Options: Options{Label: label, ModTime: modTime},
		start:   map[*fstree.Node]uint32{}, size: map[*fstree.Node]uint32{}, number: map[*fstree.Node]uint16{},
	}
	if err := l.listDirs(root); err != nil {
		return fail(err)
	}
	// Behind the path tables, each in a sector.
	const rootSector = pathTableSector + 2
	l.start[root], l.size[root] = rootSector, uint32(directorySize(root))
	file := root.Children[0]
	l.start[file] = rootSector + l.size[root]/SectorSize
	l.total = l.start[file] + uint32(sectors(int64(len(content))))
	out := make([]byte, int64(l.total)*SectorSize)
	for sector, b := range map[uint32][]byte{
		volumeSector: l.volumeDescriptor(), volumeSector + 1: terminator(),
		pathTableSector: l.pathTableBytes(false), pathTableSector + 1: l.pathTableBytes(true),
		rootSector: l.directory(root), l.start[file]: content,
	} {
		copy(out[int64(sector)*SectorSize:], b)
	}
	return out, nil
}
