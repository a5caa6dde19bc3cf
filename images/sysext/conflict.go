package sysext

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrConflict is wrapped when two extensions of one system hold the same path.
var ErrConflict = errors.New("extensions are in each other's way")

// Conflicts refuses extensions that hold the same path, unless it is a directory
// in all of them: which of them is seen on the node would depend on their names.
// All such pairs are reported.
func Conflicts(all []Contents) error {
	type owner struct {
		name string
		dir  bool
	}
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Contents) int { return strings.Compare(a.Name, b.Name) })
	owners := map[string]owner{}
	shared := map[[2]string][]string{}
	for _, c := range all {
		for dir, paths := range map[bool][]string{false: c.Files, true: c.Dirs} {
			for _, p := range paths {
				first, taken := owners[p]
				if !taken {
					owners[p] = owner{c.Name, dir}
				} else if !first.dir || !dir {
					pair := [2]string{first.name, c.Name}
					shared[pair] = append(shared[pair], p)
				}
			}
		}
	}
	var found []string
	for pair, paths := range shared {
		slices.Sort(paths)
		found = append(found, fmt.Sprintf("%s and %s both hold %s", pair[0], pair[1], few(paths)))
	}
	if len(found) == 0 {
		return nil
	}
	slices.Sort(found)
	return fmt.Errorf("%w: %s", ErrConflict, strings.Join(found, "; "))
}
