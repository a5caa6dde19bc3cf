package coordinator

import "testing"

// What etcd is without one voter, for whoever takes its certificates away.
func TestEtcdWithoutAVoter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, want string
		change     func(*model)
	}{
		{"cp1", "without cp1 2 of 3 etcd voters are healthy, quorum is 2", nil},
		{"cp1", "without cp1 1 of 3 etcd voters are healthy, quorum is 2, not healthy: cp3: nothing can be written until it has a certificate again", func(m *model) { m.node("cp3").Seen.EtcdHealthy = false }},
		{"cp3", "without cp3 2 of 3 etcd voters are healthy, quorum is 2", func(m *model) { m.node("cp3").Seen.EtcdHealthy = false }},
		{"cp1", "without cp1 0 of 1 etcd voters are healthy, quorum is 1: nothing can be written until it has a certificate again", func(m *model) { m.c.EtcdVoters = []string{"cp1"} }},
		{"w1", "", nil},
	} {
		m := newModel(t)
		if c.change != nil {
			c.change(m)
		}
		if got := Without(m.nodes, m.c, c.name); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}
