// Package routes is http.ServeMux with a list of what it serves, so that whoever has to ask
// for everything that a port answers need not be told of a new page.
package routes

import (
	"net/http"
	"slices"
)

// Mux is an http.ServeMux that remembers its patterns. The zero value serves nothing. All
// is registered before it serves; serving is safe for concurrent use.
type Mux struct {
	mux      http.ServeMux
	patterns []string
}

// Handle is http.ServeMux's.
func (m *Mux) Handle(pattern string, h http.Handler) {
	m.patterns = append(m.patterns, pattern)
	m.mux.Handle(pattern, h)
}

// HandleFunc is http.ServeMux's.
func (m *Mux) HandleFunc(pattern string, f func(http.ResponseWriter, *http.Request)) {
	m.Handle(pattern, http.HandlerFunc(f))
}

// Pattern is the one that a request falls under; empty for none.
func (m *Mux) Pattern(r *http.Request) string {
	_, pattern := m.mux.Handler(r)
	return pattern
}

// ServeHTTP implements http.Handler.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.mux.ServeHTTP(w, r) }

// Patterns are all that is served, in the form of http.ServeMux, sorted.
func (m *Mux) Patterns() []string { return slices.Sorted(slices.Values(m.patterns)) }
