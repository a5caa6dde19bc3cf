package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/backup"
	statestore "github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/store/storetest"
	"github.com/imagectl/imagectl/pxe/dhcp"
)

// Leases go with the state to etcd and back.
func TestLeasesMoveWithTheState(t *testing.T) {
	t.Parallel()
	e := storetest.Start(t)
	c := statestore.Config{Dir: t.TempDir(), Cluster: "demo", Log: io.Discard, Volatile: true}
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	want := dhcp.Lease{MAC: dhcp.MAC{2, 0, 0, 0, 0, 1}, Addr: addresses("10.0.0.7")[0], Until: until}
	// with opens the leases as serve does.
	with := func(f func(s dhcp.Store)) {
		t.Helper()
		st, err := statestore.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		s, closeLeases, err := openLeases(t.Context(), st, c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer closeLeases()
		f(s)
	}
	has := func(where string) {
		t.Helper()
		with(func(s dhcp.Store) {
			got, err := s.Load()
			if err != nil || len(got) != 1 || got[0].MAC != want.MAC || got[0].Addr != want.Addr || !got[0].Until.Equal(until) {
				t.Errorf("%s: got %v, %v, want %v", where, got, err, want)
			}
		})
	}
	with(func(s dhcp.Store) {
		if err := s.Append([]dhcp.Lease{want}); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := statestore.ToEtcd(t.Context(), c, e.Location); err != nil {
		t.Fatal(err)
	}
	has("on etcd")
	has("on etcd, the second time")
	if _, err := os.Stat(filepath.Join(c.Dir, backup.LeasesFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file still counts: %v", err)
	}
	if _, err := statestore.ToEmbedded(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	has("at home")
	has("at home, the second time")
}
