package cluster

import (
	"errors"
	"strings"
	"testing"
)

// fake is a file system in memory. It always has a keyring.
type fake map[string]string

func (f fake) read(name string) ([]byte, error) {
	s, ok := f[name]
	if strings.HasSuffix(name, "keys/flatcar.asc") {
		return nil, nil
	}
	if !ok {
		return nil, errors.New("no such file")
	}
	return []byte(s), nil
}

func TestTheStarterIsValid(t *testing.T) {
	spec, found := Parse(fake{"cluster.yaml": string(Minimal)}.read, "cluster.yaml")
	for _, f := range found {
		t.Errorf("%s", f)
	}
	if got, want := len(spec.Machines), 2; got != want {
		t.Errorf("got %d machines, want %d", got, want)
	}
	if got, want := spec.Kubernetes.Endpoint, "10.0.0.11:6443"; got != want {
		t.Errorf("got endpoint %s, want %s", got, want)
	}
	for _, w := range spec.Wants() {
		t.Logf("%-22s %s", w.ID, w.Source)
	}
}
