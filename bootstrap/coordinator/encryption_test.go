package coordinator

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// rotating is a model of a cluster whose key is replaced: what the server has chosen, what is
// on disks and in memory of API servers, what machines have said of that, and the keys under
// which there are Secrets in etcd. Keys are joined by commas, so that it can be a key of a map.
type rotating struct {
	stage    EncryptionStage
	keys     string
	rewriter string
	nodes    [2]rotatingNode
	// secrets are the keys, sorted, that are needed to read all of them.
	secrets string
	// left is how many rotations are still begun.
	left int
}

type rotatingNode struct {
	state machine.State
	// joined: kubeadm has come to its end; fetching: it was told to join.
	joined, fetching bool
	// up: its API server runs, with the keys loaded; file is on its disk.
	up           bool
	file, loaded string
	// seen: the server has heard it lately; the rest is what it said then.
	seen, saidJoined bool
	said, rewritten  string
}

func keysOf(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func (r rotating) choices() Choices {
	c := Choices{EtcdFirst: "a", EtcdFormed: true, EtcdVoters: []string{"a", "b"}, KubernetesFirst: "a", KubernetesFormed: true, APIServers: []string{"a"}, Policy: true,
		Encryption: Encryption{Stage: r.stage, Keys: keysOf(r.keys), Rewriter: r.rewriter}}
	if r.nodes[1].saidJoined {
		c.APIServers = []string{"a", "b"}
	}
	return c
}

func (r rotating) view() []Node {
	var out []Node
	for i, n := range r.nodes {
		v := Node{Name: string(rune('a' + i)), ControlPlane: true, State: n.state}
		if n.seen {
			v.Seen = &Seen{Joined: n.saidJoined, APIServerReady: n.said != "", EncryptionLoaded: keysOf(n.said), EncryptionRewritten: n.rewritten}
		}
		out = append(out, v)
	}
	return out
}

// next are all states that may follow.
func (r rotating) next() []rotating {
	var out []rotating
	add := func(f func(*rotating)) {
		next := r
		f(&next)
		out = append(out, next)
	}
	e := NextEncryption(r.view(), r.choices(), nil)
	add(func(n *rotating) { n.stage, n.keys, n.rewriter = e.Stage, strings.Join(e.Keys, ","), e.Rewriter })
	if r.left > 0 && r.stage == EncryptionSettled {
		add(func(n *rotating) {
			e := r.choices().Encryption.Rotate(fmt.Sprintf("k%d", r.left))
			n.stage, n.keys, n.left = e.Stage, strings.Join(e.Keys, ","), r.left-1
		})
	}
	for i, n := range r.nodes {
		change := func(f func(*rotatingNode)) { add(func(r *rotating) { f(&r.nodes[i]) }) }
		name := string(rune('a' + i))
		switch {
		case !n.joined && !n.fetching:
			// It calls, and by the answer begins to join; the keys are those of a later moment.
			change(func(n *rotatingNode) { n.seen, n.fetching, n.state = true, true, machine.Member })
		case !n.joined && n.file == "":
			change(func(n *rotatingNode) { n.file = r.keys })
		case !n.joined:
			change(func(n *rotatingNode) { n.joined, n.up, n.loaded = true, true, n.file })
		case n.up:
			change(func(n *rotatingNode) { n.file = r.keys })
			change(func(n *rotatingNode) { n.loaded = n.file })
			change(func(n *rotatingNode) { n.up, n.loaded = false, "" })
			change(func(n *rotatingNode) { n.seen, n.saidJoined, n.said, n.state = true, true, n.loaded, machine.Ready })
			add(func(next *rotating) { // somebody writes a Secret
				all := with(keysOf(r.secrets), keysOf(n.loaded)[0])
				next.secrets = strings.Join(all, ",")
			})
			if r.stage == EncryptionRewriting && r.rewriter == name {
				// What it writes goes through any API server that is up.
				for _, via := range r.nodes {
					if via.up {
						add(func(next *rotating) {
							next.secrets = keysOf(via.loaded)[0]
							next.nodes[i].rewritten = keysOf(r.keys)[0]
						})
					}
				}
			}
		default:
			change(func(n *rotatingNode) { n.up, n.loaded = true, n.file })
		}
		if n.seen {
			change(func(n *rotatingNode) { n.seen = false })
		}
	}
	return out
}

// Every order of every event of two control planes, one of which may have to join yet: there is
// never a Secret that one of them could not read, and the end can be reached from everywhere.
func TestRotationInEveryOrder(t *testing.T) {
	t.Parallel()
	server := func(keys string) rotatingNode {
		return rotatingNode{state: machine.Ready, joined: true, up: true, file: keys, loaded: keys, seen: true, saidJoined: true, said: keys}
	}
	for name, start := range map[string]rotating{
		"two API servers, two rotations": {keys: "k0", secrets: "k0", left: 2, nodes: [2]rotatingNode{server("k0"), server("k0")}},
		"turned on":                      {keys: PlainKey, secrets: PlainKey, left: 1, nodes: [2]rotatingNode{server(PlainKey), server(PlainKey)}},
		"one joins":                      {keys: "k0", secrets: "k0", left: 1, nodes: [2]rotatingNode{server("k0"), {state: machine.Enrolled}}},
	} {
		from := map[rotating][]rotating{start: nil}
		queue := []rotating{start}
		var ends []rotating
		for len(queue) > 0 {
			now := queue[0]
			queue = queue[1:]
			for i, n := range now.nodes {
				for _, has := range []string{n.file, n.loaded} {
					// A file is not in use before its API server is, nor memory of one that is down.
					if has == "" || !n.joined {
						continue
					}
					for _, need := range keysOf(now.secrets) {
						if !slices.Contains(keysOf(has), need) {
							t.Fatalf("%s: node %d has %q and there are Secrets under %q: %+v", name, i, has, need, now)
						}
					}
				}
			}
			if now.left == 0 && now.stage == EncryptionSettled && now.secrets == "k1" && now.keys == "k1" {
				ends = append(ends, now)
			}
			for _, next := range now.next() {
				if _, known := from[next]; !known {
					queue = append(queue, next)
				}
				from[next] = append(from[next], now)
			}
		}
		// Backwards from the ends: no state leads nowhere.
		good := map[rotating]bool{}
		for len(ends) > 0 {
			now := ends[0]
			ends = ends[1:]
			if good[now] {
				continue
			}
			good[now] = true
			ends = append(ends, from[now]...)
		}
		for s := range from {
			if !good[s] {
				t.Fatalf("%s: there is no way from here to the end: %+v", name, s)
			}
		}
		t.Logf("%s: %d states", name, len(from))
	}
}

func TestEncryptionSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	keys := []string{"k1", "k2"}
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2", "cp3"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2", "cp3"}}
	said := func(keys ...string) *Seen {
		return &Seen{Joined: true, APIServerReady: true, EncryptionLoaded: keys}
	}
	row := func(name string, s machine.State, seen *Seen) Node {
		return Node{Name: name, ControlPlane: true, State: s, Seen: seen}
	}
	for _, x := range []struct {
		name  string
		node  Node
		stage EncryptionStage
		want  string
	}{
		{"it has them", row("cp2", machine.Ready, said(keys...)), EncryptionAdding, ""},
		{"it has others", row("cp2", machine.Ready, said("k1")), EncryptionAdding, "cp2 has not said that its API server has loaded the keys k1, k2"},
		{"the order is another", row("cp2", machine.Ready, said("k2", "k1")), EncryptionAdding, "cp2 has not said that its API server has loaded the keys k1, k2"},
		{"it is silent", row("cp2", machine.Ready, nil), EncryptionAdding, "cp2 does not call, and its API server has the keys of before: switch it on, or imagectl machines retire cp2"},
		{"it is silent, armed", row("cp2", machine.Armed, nil), EncryptionWriting, "cp2 does not call, and its API server has the keys of before: switch it on, or imagectl machines retire cp2"},
		{"it is retired", row("cp2", machine.Retired, nil), EncryptionAdding, ""},
		{"it is written anew", row("cp2", machine.Installing, nil), EncryptionAdding, ""},
		{"it joins", row("cp2", machine.Member, &Seen{EtcdMember: true}), EncryptionAdding, "cp2 joins Kubernetes, and may have the keys of a moment ago"},
		{"it joined and was not heard again", row("cp9", machine.Member, nil), EncryptionAdding, "cp9 does not call, and its API server has the keys of before: switch it on, or imagectl machines retire cp9"},
		{"it never joined", row("cp9", machine.Enrolled, nil), EncryptionAdding, ""},
		{"a worker", Node{Name: "w1", State: machine.Ready, Seen: said()}, EncryptionAdding, ""},
		{"silent while another writes anew", row("cp2", machine.Ready, nil), EncryptionRewriting, "cp1 writes all Secrets anew"},
		{"nothing is under way", row("cp2", machine.Ready, nil), EncryptionSettled, ""},
	} {
		c.Encryption = Encryption{Stage: x.stage, Keys: keys}
		if x.stage == EncryptionRewriting {
			c.Encryption.Rewriter = "cp1"
		}
		nodes := []Node{row("cp1", machine.Ready, said(keys...)), x.node}
		if got := strings.Join(EncryptionWaits(nodes, c, nil), "; "); got != x.want {
			t.Errorf("%s:\ngot  %s\nwant %s", x.name, got, x.want)
		}
		moved := !NextEncryption(nodes, c, nil).Equal(c.Encryption)
		if want := x.want == "" && x.stage != EncryptionSettled; moved != want {
			t.Errorf("%s: it goes on: %v, want %v", x.name, moved, want)
		}
	}
	c.Encryption = Encryption{Stage: EncryptionAdding, Keys: keys}
	nodes := []Node{row("cp1", machine.Ready, said(keys...))}
	if got := NextEncryption(nodes, c, []string{"no backup"}); !got.Equal(c.Encryption) {
		t.Errorf("it does not wait for a backup: %+v", got)
	}
	if got := EncryptionWaits(nodes, c, []string{"no backup"}); !slices.Equal(got, []string{"no backup"}) {
		t.Errorf("it says %v", got)
	}
}

// Former keys stay behind the others until all is written anew.
func TestFormerKeysAreReadWithUntilAllIsWrittenAnew(t *testing.T) {
	t.Parallel()
	c := Choices{KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1"}, Encryption: Encryption{Keys: []string{"k2"}}.Rotate("k3", PlainKey, "k1")}
	seen := &Seen{Joined: true, APIServerReady: true}
	nodes := []Node{{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: seen}}
	for _, want := range []Encryption{
		{Stage: EncryptionAdding, Keys: []string{"k2", "k3", PlainKey, "k1"}},
		{Stage: EncryptionWriting, Keys: []string{"k3", "k2", PlainKey, "k1"}},
		{Stage: EncryptionRewriting, Keys: []string{"k3", "k2", PlainKey, "k1"}, Rewriter: "cp1"},
	} {
		if !c.Encryption.Equal(want) || c.Encryption.Next() != "k3" {
			t.Fatalf("it is %+v with %q next, want %+v", c.Encryption, c.Encryption.Next(), want)
		}
		seen.EncryptionLoaded = []string{want.Keys[0], want.Keys[1]}
		if got := NextEncryption(nodes, c, nil); want.Stage != EncryptionRewriting && !got.Equal(want) {
			t.Errorf("an API server without the former keys is enough: %+v", got)
		}
		seen.EncryptionLoaded = want.Keys
		c.Encryption = NextEncryption(nodes, c, nil)
	}
	seen.EncryptionRewritten = "k3"
	if got := NextEncryption(nodes, c, nil); !got.Equal(Encryption{Keys: []string{"k3"}}) || got.Next() != "" {
		t.Errorf("it ends as %+v", got)
	}
}

// The machine that writes all Secrets anew is lost: another one does it.
func TestAnotherMachineRewrites(t *testing.T) {
	t.Parallel()
	c := Choices{KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2"}, Encryption: Encryption{Stage: EncryptionRewriting, Keys: []string{"k2", "k1"}, Rewriter: "cp1"}}
	ready := func() *Seen { return &Seen{Joined: true, APIServerReady: true} }
	nodes := []Node{{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: ready()}, {Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: ready()}}
	if d := Direct(nodes, c, "cp1"); !d.Rewrite {
		t.Error("cp1 is not told to write Secrets anew")
	}
	if d := Direct(nodes, c, "cp2"); d.Rewrite {
		t.Error("cp2 is told to write Secrets anew")
	}
	nodes[0].Seen = nil
	c.Encryption = NextEncryption(nodes, c, nil)
	if c.Encryption.Rewriter != "cp2" {
		t.Fatalf("%+v", c.Encryption)
	}
	nodes[1].Seen = nil
	if got := NextEncryption(nodes, c, nil); got.Rewriter != "cp2" {
		t.Errorf("nobody is there, and it is %+v", got)
	}
	nodes[1].Seen = ready()
	nodes[1].Seen.EncryptionRewritten = "k1"
	if got := NextEncryption(nodes, c, nil); got.Stage != EncryptionRewriting {
		t.Errorf("what was written anew with another key counts: %+v", got)
	}
	nodes[1].Seen.EncryptionRewritten = "k2"
	if got := NextEncryption(nodes, c, nil); !got.Equal(Encryption{Keys: []string{"k2"}}) {
		t.Errorf("%+v", got)
	}
}

// API servers are started with another policy one after the other.
func TestPolicyIsRolledOutOneAfterTheOther(t *testing.T) {
	t.Parallel()
	c := Choices{EtcdFormed: true, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2"}}
	say := func(ready, outdated bool) *Seen {
		return &Seen{EtcdHealthy: true, Joined: true, APIServerReady: ready, Outdated: outdated}
	}
	nodes := []Node{{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: say(true, true)}, {Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: say(true, true)}}
	for _, x := range []struct {
		when     string
		a, b     *Seen
		renewing string
	}{
		{"both are", say(true, true), say(true, true), "cp1"},
		{"cp1 starts anew", say(false, false), say(true, true), "cp1"},
		{"cp1 is back", say(true, false), say(true, true), "cp2"},
		{"cp2 is back", say(true, false), say(true, false), ""},
		{"cp1 alone would be without a server", say(true, true), say(false, false), ""},
	} {
		nodes[0].Seen, nodes[1].Seen = x.a, x.b
		if c = chooseRenewing(nodes, c); c.Renewing != x.renewing {
			t.Errorf("%s: %q is started anew, want %q", x.when, c.Renewing, x.renewing)
		}
	}
}
