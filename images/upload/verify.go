package upload

import (
	"fmt"
	"maps"
	"slices"
)

// CompareLabels is a Check that an object has the labels of an image; label gives
// one of them, by a key of Audit. The digest of the file is left out: the object may
// have been made of another format of the same disk.
func CompareLabels(label func(key string) string, img Image) Check {
	want := img.Audit()
	delete(want, LabelFile)
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got := label(k); got != want[k] {
			return Compare("label "+k, got, want[k])
		}
	}
	return Check{Name: "labels", Result: Good, Detail: fmt.Sprintf("%d of them", len(want))}
}
