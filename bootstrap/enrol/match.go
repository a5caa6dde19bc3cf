package enrol

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Hardware is what cluster.yaml recognises a machine by, or what a machine says
// about itself. MACs and the UUID are lower case.
type Hardware struct {
	// Name is empty in what a machine says.
	Name   string
	MACs   []string
	UUID   string
	Serial string
}

// Index finds machines by their hardware. It is immutable.
type Index struct {
	byMAC, byUUID, bySerial map[string]string
	listed                  map[string]Hardware
}

// NewIndex indexes the machines of cluster.yaml, which has been checked for
// duplicates already.
func NewIndex(listed []Hardware) Index {
	ix := Index{
		byMAC: map[string]string{}, byUUID: map[string]string{}, bySerial: map[string]string{},
		listed: map[string]Hardware{},
	}
	for _, h := range listed {
		ix.listed[h.Name] = h
		for _, m := range h.MACs {
			ix.byMAC[m] = h.Name
		}
		if h.UUID != "" {
			ix.byUUID[h.UUID] = h.Name
		}
		if h.Serial != "" {
			ix.bySerial[h.Serial] = h.Name
		}
	}
	return ix
}

// Match says which machine of cluster.yaml this is. Nothing is granted on it: it
// only chooses the record that an operator is asked about. An empty name means
// unknown (refusal nil) or that the facts do not fit together (refusal set).
func (ix Index) Match(seen Hardware) (name string, refusal *Refusal) {
	hits := map[string]bool{}
	for _, m := range seen.MACs {
		if n, ok := ix.byMAC[m]; ok {
			hits[n] = true
		}
	}
	if n, ok := ix.byUUID[seen.UUID]; ok {
		hits[n] = true
	}
	if n, ok := ix.bySerial[seen.Serial]; ok {
		hits[n] = true
	}
	names := slices.Sorted(maps.Keys(hits))
	switch len(names) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", &Refusal{CodeAmbiguous, fmt.Sprintf("its MAC addresses, UUID and serial number belong to different machines of cluster.yaml (%s); correct their match there", strings.Join(names, ", "))}
	}
	h := ix.listed[names[0]]
	if h.UUID != "" && seen.UUID != "" && h.UUID != seen.UUID {
		return "", &Refusal{CodeContradiction, fmt.Sprintf("it looks like %s, but its UUID is %s and cluster.yaml says %s", h.Name, seen.UUID, h.UUID)}
	}
	if h.Serial != "" && seen.Serial != "" && h.Serial != seen.Serial {
		return "", &Refusal{CodeContradiction, fmt.Sprintf("it looks like %s, but its serial number is %q and cluster.yaml says %q", h.Name, seen.Serial, h.Serial)}
	}
	return h.Name, nil
}

// UnknownName is the stable name of a machine that cluster.yaml does not list;
// empty when it says nothing to tell it by.
func UnknownName(seen Hardware) string {
	id := seen.UUID
	if len(seen.MACs) > 0 {
		id = strings.ReplaceAll(slices.Min(seen.MACs), ":", "")
	}
	if id == "" {
		return ""
	}
	return "unknown-" + id
}
