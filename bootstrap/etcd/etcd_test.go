package etcd

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func first() Member {
	return Member{Name: "cp1", Address: netip.MustParseAddr("10.0.0.11"), InitialCluster: "cp1=https://10.0.0.11:2380", Token: "lab-7f3a", Bootstrap: true}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	join := first()
	join.Name, join.Address, join.Bootstrap = "cp2", netip.MustParseAddr("2001:db8::12"), false
	join.InitialCluster += ",cp2=https://[2001:db8::12]:2380"
	for name, m := range map[string]Member{"bootstrap": first(), "join": join} {
		got, err := m.Config()
		if err != nil {
			t.Fatal(err)
		}
		golden := "testdata/" + name + ".yaml"
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Member){
		`configuring etcd member "": it has no name`:                                     func(m *Member) { m.Name = "" },
		`configuring etcd member "cp1": 0.0.0.0 is no address that peers could reach`:    func(m *Member) { m.Address = netip.IPv4Unspecified() },
		`configuring etcd member "cp1": invalid IP is no address that peers could reach`: func(m *Member) { m.Address = netip.Addr{} },
		`configuring etcd member "cp1": the cluster token is empty`:                      func(m *Member) { m.Token = "" },
		`configuring etcd member "cp1": the initial cluster "cp2=https://10.0.0.12:2380" does not hold cp1=https://10.0.0.11:2380`: func(m *Member) {
			m.InitialCluster = "cp2=https://10.0.0.12:2380"
		},
		`configuring etcd member "cp1": the first member of a new cluster starts alone, the initial cluster is cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380`: func(m *Member) {
			m.InitialCluster += ",cp2=https://10.0.0.12:2380"
		},
	} {
		m := first()
		change(&m)
		if _, err := m.Config(); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}
