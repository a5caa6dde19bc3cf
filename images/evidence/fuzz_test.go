package evidence_test

import (
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/provenance"
)

// FuzzParseSums takes what ParseSums accepts through Sums, which must give the
// same lines, sorted.
func FuzzParseSums(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		sums, err := evidence.ParseSums(b)
		if err != nil {
			return
		}
		var files []provenance.Resource
		for name, digest := range sums {
			files = append(files, provenance.Resource{Name: name, Digest: provenance.Digest{SHA256: digest}})
		}
		again := string(evidence.Sums(files))
		if len(again) != len(b) {
			t.Errorf("got %q, want the lines of %q", again, b)
		}
		for line := range strings.Lines(string(b)) {
			if !strings.Contains(again, line) {
				t.Errorf("got %q, without %q", again, line)
			}
		}
	})
}
