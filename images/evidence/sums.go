package evidence

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"

	"github.com/imagectl/imagectl/images/provenance"
)

// SumsName is the checksum file's name in the output directory.
const SumsName = "SHA256SUMS"

// Sums writes what "sha256sum --check" reads, sorted by name.
func Sums(files []provenance.Resource) []byte {
	sorted := slices.Clone(files)
	slices.SortFunc(sorted, func(a, b provenance.Resource) int { return cmp.Compare(a.Name, b.Name) })
	var buf bytes.Buffer
	for _, f := range sorted {
		fmt.Fprintf(&buf, "%s  %s\n", f.Digest.SHA256, f.Name)
	}
	return buf.Bytes()
}

var sumLine = regexp.MustCompile(`^([0-9a-f]{64})  ([^/\\]+)$`)

// ParseSums reads digests by name. It takes only what Sums writes.
func ParseSums(b []byte) (map[string]string, error) {
	out := map[string]string{}
	if !bytes.HasSuffix(b, []byte("\n")) {
		return nil, fmt.Errorf("parsing checksums: the last line is cut")
	}
	for i, line := range bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) {
		m := sumLine.FindSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("parsing checksums: line %d is no digest, two spaces and a file name", i+1)
		}
		if _, twice := out[string(m[2])]; twice {
			return nil, fmt.Errorf("parsing checksums: line %d names %s again", i+1, m[2])
		}
		out[string(m[2])] = string(m[1])
	}
	return out, nil
}
