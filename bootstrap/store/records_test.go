package store

import (
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

func collect(t *testing.T, all iter.Seq2[Record, error]) []Record {
	t.Helper()
	var out []Record
	for r, err := range all {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func TestRecordsMakeTheSameStateElsewhere(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	for i := range 700 { // more than a page and a transaction
		if err := s.Change(t.Context(), func(tx *Tx) error {
			return tx.PutValue(fmt.Sprintf("v/%03d", i), strings.Repeat("x", 3000)) // more than one request takes
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Change(t.Context(), func(tx *Tx) error { return tx.PutMachine(Machine{Name: "cp1", State: machine.Armed}) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Secret(t.Context(), "ca", func() ([]byte, error) { return []byte("key"), nil }, nil); err != nil {
		t.Fatal(err)
	}
	want := collect(t, s.Records(t.Context()))

	// Changes that come while somebody reads are not seen.
	var during []Record
	for r, err := range s.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if len(during) == 0 {
			if err := s.Change(t.Context(), func(tx *Tx) error { return tx.PutValue("zz-late", 1) }); err != nil {
				t.Fatal(err)
			}
		}
		during = append(during, r)
	}
	if len(want) != 702 || len(during) != len(want) {
		t.Errorf("%d records, and %d while there is a change; want 702 both times", len(want), len(during))
	}
	identity, err := s.IdentityFile()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()

	all := func(yield func(Record, error) bool) {
		for _, r := range want {
			if !yield(r, nil) {
				return
			}
		}
	}
	dir := t.TempDir()
	c := Config{Dir: dir, Cluster: "demo", Log: io.Discard, Volatile: true}
	if err := Create(t.Context(), c, identity, all); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), c, identity, all); err == nil || err.Error() != "making state directory "+dir+": identity.age is there already" {
		t.Errorf("a second time: %v", err)
	}
	s = openStore(t, dir)
	defer s.Close()
	if diff := cmp.Diff(want, collect(t, s.Records(t.Context()))); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if s.State("cp1") != machine.Armed {
		t.Errorf("cp1 is %q", s.State("cp1"))
	}
	got, err := s.Secret(t.Context(), "ca", nil, nil)
	if err != nil || string(got) != "key" {
		t.Errorf("the secret: %q, %v", got, err)
	}
	for _, r := range want {
		if err := s.Opens(r); err != nil {
			t.Error(err)
		}
	}
	i := slices.IndexFunc(want, func(r Record) bool { return strings.Contains(r.Key, secretsPrefix) })
	other := openStore(t, filepath.Join(t.TempDir(), "other"))
	defer other.Close()
	if err := other.Opens(want[i]); err == nil || !strings.Contains(err.Error(), "reading secret ca: decrypting with identity.age") {
		t.Errorf("another identity: %v", err)
	}
}
