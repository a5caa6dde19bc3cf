package selector

import "testing"

// A pattern is refused, or fits nothing that contradicts it, and overlaps itself where
// it fits anything.
func FuzzNew(f *testing.F) {
	for _, s := range [][3]string{
		{"mac", "52:54:00:00:00:10-52:54:00:00:00:1f", "52:54:00:00:00:11"}, {"serial", "/x[0-9]+/", "x12"}, {"network", "10.1.0.0/16", "10.1.2.3"},
		{"uuid", "ABC", "abc"}, {"circuitID", "/(/", ""}, {"mac", "52:54:00:00:00:01-", "-"}, {"remoteID", "/", "/"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, field, pattern, shown string) {
		s, err := New(map[Field][]string{Field(field): {pattern}})
		if err != nil {
			return
		}
		saw := Shown{Field(field): shown}
		fits := s.Match(saw)
		if fits && s.Contradicts(saw) {
			t.Errorf("%s %q fits and contradicts %q", field, pattern, shown)
		}
		if fits && s.Overlaps(s) == Never {
			t.Errorf("%s %q fits %q and does not overlap itself", field, pattern, shown)
		}
	})
}
