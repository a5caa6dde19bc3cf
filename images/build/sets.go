package build

import (
	"slices"

	"github.com/imagectl/imagectl/images/store"
)

// SetsOf returns what to ask for to get the artefacts of a manifest again.
func SetsOf(m store.Manifest) []Set {
	var out []Set
	add := func(s Set) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	stream := false
	for _, a := range m.Artefacts {
		switch {
		case a.Format == store.RawZstd:
			stream = true
		case a.Format == store.ISO:
			add(SetISO)
		case a.Format == store.UKI:
			add(SetUKI)
		case a.Role == "" && a.Format.Carries():
			add(SetPXE)
		}
		for _, f := range diskFormats() {
			if f.format == a.Format && a.Format != store.RawZstd {
				add(f.sets[0])
			}
		}
	}
	// The install stream comes with either set.
	if stream && !slices.Contains(out, SetRaw) {
		add(SetPXE)
	}
	return out
}
