package upload

import (
	"fmt"
	"maps"
	"slices"
)

// CompareLabels is a Check that an object has the labels of an image; label gives
// one of them, by a key of Audit. Those are left out that another build of the same
// disk changes: the digest of the file, which may have another format (CompareFile), and
// what SaysBuild names.
func CompareLabels(label func(key string) string, img Image) Check {
	want := img.Audit()
	maps.DeleteFunc(want, func(k, _ string) bool { return k == LabelFile || SaysBuild(k) })
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got := label(k); got != want[k] {
			return Compare("label "+k, got, want[k])
		}
	}
	return Check{Name: "labels", Result: Good, Detail: fmt.Sprintf("%d of them", len(want))}
}

// SaysBuild tells whether a label is of a build, and not of what is on the disk.
func SaysBuild(label string) bool {
	return label == LabelGit || label == LabelCreated || label == LabelManifest
}

// CompareFile is a Check of the file that an object was made of, by the label LabelFile
// that it has there. Another file with the same disk is no fault, and then nothing is
// known of the bytes that were sent.
func CompareFile(there string, img Image) Check {
	const name = "label " + LabelFile
	switch here := "sha256:" + img.SHA256; there {
	case here:
		return Check{Name: name, Result: Good, Detail: there + ": the label, and no proof of what is stored"}
	case "":
		return Check{Name: name, Result: Bad, Detail: fmt.Sprintf("there is none, and it is %q here", here)}
	}
	return Check{Name: name, Result: Unprovable, Detail: "it was made of another file with the same disk, with the digest " + there}
}
