package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	statestore "github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/store/storetest"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
)

// Leases go with the state to etcd and back, those of both protocols.
func TestLeasesMoveWithTheState(t *testing.T) {
	t.Parallel()
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	t.Run("DHCP", func(t *testing.T) {
		t.Parallel()
		movesWithTheState(t, keeping4(), dhcp.Lease{MAC: dhcp.MAC{2, 0, 0, 0, 0, 1}, Addr: addresses("10.0.0.7")[0], Until: until})
	})
	t.Run("DHCPv6", func(t *testing.T) {
		t.Parallel()
		movesWithTheState(t, keeping6(), dhcp6.Lease{Key: dhcp6.Key{Client: "02:00:00:00:00:01", IAID: 7}, Addr: addresses("fd00::7")[0], Until: until})
	})
}

func movesWithTheState[L comparable](t *testing.T, k keeping[L], want L) {
	t.Helper()
	e := storetest.Start(t)
	c := statestore.Config{Dir: t.TempDir(), Cluster: "demo", Log: io.Discard, Volatile: true}
	// with opens the leases as serve does.
	with := func(f func(s keeper[L])) {
		t.Helper()
		st, err := statestore.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		s, closeLeases, err := k.open(t.Context(), st, c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer closeLeases()
		f(s)
	}
	has := func(where string) {
		t.Helper()
		with(func(s keeper[L]) {
			got, err := s.Load()
			if err != nil || len(got) != 1 || got[0] != want {
				t.Errorf("%s: got %v, %v, want %v", where, got, err, want)
			}
		})
	}
	with(func(s keeper[L]) {
		if err := s.Append([]L{want}); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := statestore.ToEtcd(t.Context(), c, e.Location); err != nil {
		t.Fatal(err)
	}
	has("on etcd")
	has("on etcd, the second time")
	if _, err := os.Stat(filepath.Join(c.Dir, k.file)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file still counts: %v", err)
	}
	if _, err := statestore.ToEmbedded(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	has("at home")
	has("at home, the second time")
}
