package coordinator

import (
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// replacing is a model of a cluster whose etcd CA is replaced: what the server has chosen, and of
// each machine what is on its disk, what its processes run with, and what it has said of that. CAs
// are letters, the first signs; a string of them can be a key of a map.
type replacing struct {
	stage                CAStage
	turn                 uint64
	cas                  string
	restarting, renewing string
	nodes                [2]replacingNode
	// left is how many replacements are still begun.
	left int
}

type replacingNode struct {
	// taken is the turn whose CAs are on the disk as files. leaf has signed what etcd shows: it
	// reads that at each handshake.
	taken uint64
	files string
	leaf  string
	// up: its etcd runs, with the CAs trusts. told: what it took last says that it is its turn.
	up     bool
	trusts string
	told   bool
	// api are the CAs that its API server runs with, and client has signed what that shows etcd.
	// outdated: it has said that the API server is to be started anew.
	api, client string
	// seen: the server has heard it lately; the rest is what it said then.
	seen, stale, outdated, fit, ready bool
	done                              uint64
}

func letters(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "")
}

func (r replacing) choices() Choices {
	return Choices{EtcdFirst: "a", EtcdFormed: true, EtcdVoters: []string{"a", "b"}, KubernetesFirst: "a", KubernetesFormed: true, APIServers: []string{"a", "b"}, Policy: true,
		EtcdRestarting: r.restarting, Renewing: r.renewing, EtcdCA: CARotation{Stage: r.stage, Turn: r.turn, CAs: letters(r.cas)}}
}

func (r replacing) view() []Node {
	var out []Node
	for i, n := range r.nodes {
		v := Node{Name: string(rune('a' + i)), ControlPlane: true, State: machine.Ready}
		if n.seen {
			v.Seen = &Seen{Joined: true, EtcdHealthy: n.fit, EtcdMember: true, Etcd: Keeping{Fit: n.fit}, APIServerReady: n.ready, Outdated: n.outdated, CAStale: n.stale, CADone: n.done, CATurn: n.taken}
		}
		out = append(out, v)
	}
	return out
}

// same says whether two strings have the same letters.
func same(a, b string) bool {
	return slices.Equal(slices.Sorted(slices.Values(letters(a))), slices.Sorted(slices.Values(letters(b))))
}

// through is what an agent says of itself.
func (n replacingNode) through() uint64 {
	if n.up && n.leaf == n.files[:1] && n.client == n.files[:1] && same(n.trusts, n.files) && same(n.api, n.files) {
		return n.taken
	}
	return 0
}

// next are all states that may follow.
func (r replacing) next() []replacing {
	var out []replacing
	add := func(f func(*replacing)) {
		next := r
		f(&next)
		out = append(out, next)
	}
	// The server looks.
	add(func(n *replacing) {
		c := chooseRenewing(r.view(), chooseRestarting(r.view(), r.choices()))
		c.EtcdCA = NextEtcdCA(r.view(), c, nil)
		n.restarting, n.renewing = c.EtcdRestarting, c.Renewing
		n.stage, n.turn, n.cas = c.EtcdCA.Stage, c.EtcdCA.Turn, strings.Join(c.EtcdCA.CAs, "")
	})
	if r.left > 0 && r.stage == CASettled {
		add(func(n *replacing) {
			e := r.choices().EtcdCA.Rotate(r.cas[:1], string(rune(r.cas[0]+1)))
			n.stage, n.turn, n.cas, n.left = e.Stage, e.Turn, strings.Join(e.CAs, ""), r.left-1
		})
	}
	for i, n := range r.nodes {
		name := string(rune('a' + i))
		change := func(f func(*replacingNode)) { add(func(r *replacing) { f(&r.nodes[i]) }) }
		// It takes what it is told, which is one message, and then certificates by whoever signs
		// then.
		change(func(n *replacingNode) { n.taken, n.files, n.told = r.turn, r.cas, r.restarting == name })
		if n.leaf != n.files[:1] && strings.Contains(n.files, r.cas[:1]) {
			change(func(n *replacingNode) { n.leaf = r.cas[:1] })
		}
		if n.client != n.files[:1] && strings.Contains(n.files, r.cas[:1]) {
			change(func(n *replacingNode) { n.client = r.cas[:1] })
		}
		if n.up && n.told && !same(n.trusts, n.files) {
			change(func(n *replacingNode) { n.up = false })
		}
		if !n.up {
			change(func(n *replacingNode) { n.up, n.trusts = true, n.files })
		}
		if r.renewing == name {
			change(func(n *replacingNode) { n.api = n.files })
		}
		change(func(n *replacingNode) {
			n.seen, n.stale, n.outdated, n.fit, n.ready, n.done = true, n.up && !same(n.trusts, n.files), !same(n.api, n.files), n.up, n.up, n.through()
		})
		if n.seen {
			change(func(n *replacingNode) { n.seen = false })
		}
	}
	return out
}

// broken says what does not work in a state; empty for nothing.
func (r replacing) broken() string {
	for i, n := range r.nodes {
		for j, o := range r.nodes {
			// Each dials the other, and shows it its own.
			if n.up && o.up && (!strings.Contains(n.trusts, o.leaf) || !strings.Contains(o.trusts, n.leaf)) {
				return string(rune('a'+i)) + " and " + string(rune('a'+j)) + " do not trust each other"
			}
		}
		if n.up && (!strings.Contains(n.trusts, n.client) || !strings.Contains(n.api, n.leaf)) {
			return "the API server of " + string(rune('a'+i)) + " and its etcd do not trust each other"
		}
	}
	if !r.nodes[0].up && !r.nodes[1].up {
		return "both are started anew at once"
	}
	return ""
}

// Every order of every event of two control planes, each of which may also take what it is told,
// make its certificates, start its etcd and its API server late: at no time does one not trust what
// another shows, never are two members away at once, and the end can be reached from everywhere.
func TestEtcdsCAIsReplacedInEveryOrder(t *testing.T) {
	t.Parallel()
	node := replacingNode{files: "A", leaf: "A", client: "A", up: true, trusts: "A", api: "A", seen: true, fit: true, ready: true}
	start := replacing{cas: "A", nodes: [2]replacingNode{node, node}, left: 1}
	from := map[replacing][]replacing{start: nil}
	queue := []replacing{start}
	var ends []replacing
	for len(queue) > 0 {
		now := queue[0]
		queue = queue[1:]
		if why := now.broken(); why != "" {
			t.Fatalf("%s: %+v", why, now)
		}
		if now.left == 0 && now.stage == CASettled {
			for _, n := range now.nodes {
				if n.files != "B" || n.leaf != "B" || n.client != "B" || n.trusts != "B" || n.api != "B" {
					t.Fatalf("it is settled, and not everywhere: %+v", now)
				}
			}
			ends = append(ends, now)
		}
		for _, next := range now.next() {
			if next == now {
				continue
			}
			if _, known := from[next]; !known {
				queue = append(queue, next)
			}
			from[next] = append(from[next], now)
		}
	}
	good := map[replacing]bool{}
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
			t.Fatalf("there is no way from here to the end: %+v", s)
		}
	}
	t.Logf("%d states", len(from))
}

func TestEtcdsCASaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2", "cp3"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2", "cp3"}}
	well := func(change func(*Seen)) *Seen {
		s := &Seen{Joined: true, APIServerReady: true, EtcdHealthy: true, EtcdMember: true, Etcd: Keeping{Fit: true}, CATurn: 1, CADone: 1}
		change(s)
		return s
	}
	none := func(*Seen) {}
	stale := func(s *Seen) { s.CADone, s.CAStale = 0, true }
	row := func(name string, s machine.State, seen *Seen) Node {
		return Node{Name: name, ControlPlane: true, State: s, Seen: seen}
	}
	for _, x := range []struct {
		name   string
		node   Node
		change func(*Choices)
		want   string
	}{
		{"it is through", row("cp2", machine.Ready, well(none)), nil, ""},
		{"it was asked and has said nothing", row("cp2", machine.Ready, well(func(s *Seen) { s.CADone = 0 })), nil, "cp2 has not said that it is through"},
		{"it is silent", row("cp2", machine.Ready, nil), nil, "cp2 does not call, and what is on its disk has the CAs of before: switch it on, or imagectl machines retire cp2"},
		{"it is retired", row("cp2", machine.Retired, nil), nil, ""},
		{"it is written anew", row("cp2", machine.Installing, nil), nil, ""},
		{"it never joined", row("cp9", machine.Enrolled, nil), nil, ""},
		{"it waits to join", row("cp9", machine.Enrolled, &Seen{}), nil, ""},
		{"it joins", row("cp9", machine.Enrolled, &Seen{}), func(c *Choices) { c.EtcdJoining = "cp9" }, "cp9 has not said that it is through"},
		{"it has a member, and no right that says so", row("cp9", machine.Enrolled, &Seen{EtcdMember: true}), nil, "cp9 has not said that it is through"},
		{"it runs an API server, and no right says so", row("cp9", machine.Enrolled, &Seen{Joined: true}), nil, "cp9 has not said that it is through"},
		{"it is to run an API server, and is silent", row("cp9", machine.Enrolled, nil), func(c *Choices) { c.APIServers = []string{"cp1", "cp3", "cp9"} }, "cp9 does not call, and what is on its disk has the CAs of before: switch it on, or imagectl machines retire cp9"},
		{"it begins etcd, and is silent", row("cp9", machine.Enrolled, nil), func(c *Choices) { c.EtcdFirst = "cp9" }, "cp9 does not call, and what is on its disk has the CAs of before: switch it on, or imagectl machines retire cp9"},
		{"it runs its installer", row("cp2", machine.Ready, &Seen{Installer: true}), nil, ""},
		{"a worker", Node{Name: "w1", State: machine.Ready, Seen: &Seen{}}, nil, ""},
		{"its etcd is started anew", row("cp2", machine.Ready, well(stale)), func(c *Choices) { c.EtcdRestarting = "cp2" }, "cp2 starts its etcd anew"},
		{"after another's", row("cp2", machine.Ready, well(stale)), func(c *Choices) { c.EtcdRestarting = "cp1" }, "cp2 is to start its etcd anew, after cp1"},
		{"another is not well", row("cp2", machine.Ready, well(stale)), func(c *Choices) { c.EtcdVoters = []string{"cp1", "cp2", "cp3", "cp4"} }, "cp2 is to start its etcd anew: not while it is not well: cp4"},
		{"its API server is next", row("cp2", machine.Ready, well(func(s *Seen) { s.CADone, s.Outdated = 0, true })), nil, "cp2 is to start its API server anew"},
		{"its API server is at it", row("cp2", machine.Ready, well(func(s *Seen) { s.CADone, s.Outdated = 0, true })), func(c *Choices) { c.Renewing = "cp2" }, "cp2 starts its API server anew"},
	} {
		c := c
		c.EtcdCA = CARotation{CAs: []string{"k1"}}.Rotate("k1", "k2")
		if x.change != nil {
			x.change(&c)
		}
		nodes := []Node{row("cp1", machine.Ready, well(none)), x.node, row("cp3", machine.Ready, well(none))}
		if got := strings.Join(EtcdCAWaits(nodes, c, nil), "; "); got != x.want {
			t.Errorf("%s:\ngot  %s\nwant %s", x.name, got, x.want)
		}
		if moved := !NextEtcdCA(nodes, c, nil).Equal(c.EtcdCA); moved != (x.want == "") {
			t.Errorf("%s: it goes on: %v", x.name, moved)
		}
		if got := NextEtcdCA(nodes, c, []string{"no backup"}); !got.Equal(c.EtcdCA) {
			t.Errorf("%s: it does not wait for a backup: %+v", x.name, got)
		}
	}
}

// The stages, and what a server that came out of a backup does when machines are further.
func TestEtcdsCAGoesOnFromWhatMachinesHaveHeard(t *testing.T) {
	t.Parallel()
	said := func(turn, done uint64) []Node {
		return []Node{{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: &Seen{Joined: true, EtcdMember: true, Etcd: Keeping{Fit: true}, CATurn: turn, CADone: done}}}
	}
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1"}}
	begun := CARotation{}.Rotate("k1", "k2")
	signing := CARotation{Stage: CASigning, Turn: 2, CAs: []string{"k2", "k1"}}
	dropping := CARotation{Stage: CADropping, Turn: 3, CAs: []string{"k2"}}
	settled := CARotation{Turn: 3, CAs: []string{"k2"}}
	for _, x := range []struct {
		name       string
		now        CARotation
		turn, done uint64
		want       CARotation
		ahead      bool
	}{
		{"nothing is said", begun, 0, 0, begun, false},
		{"it has taken it", begun, 1, 0, begun, false},
		{"it is through", begun, 1, 1, signing, false},
		{"it signs", signing, 2, 1, signing, false},
		{"all is made anew", signing, 2, 2, dropping, false},
		{"dropped", dropping, 3, 3, settled, false},
		{"settled", settled, 3, 3, settled, false},
		{"restored, a turn late", begun, 2, 0, signing, true},
		{"restored, two turns late", begun, 3, 3, signing, true},
		{"restored, still a turn late", signing, 3, 3, dropping, true},
		{"restored to before it began", CARotation{}, 3, 3, CARotation{}, true},
		// All were through with what dropped the old one, but not of this replacement: who is ahead has to be.
		{"restored to the end of the replacement before", dropping, 5, 0, dropping, true},
		{"the same, and through", dropping, 6, 6, settled, true},
	} {
		c.EtcdCA = x.now
		if got := NextEtcdCA(said(x.turn, x.done), c, nil); !got.Equal(x.want) {
			t.Errorf("%s: %+v, want %+v", x.name, got, x.want)
		}
		if got := len(EtcdCAAhead(said(x.turn, x.done), c)) > 0; got != x.ahead {
			t.Errorf("%s: ahead %v", x.name, got)
		}
	}
}

// Only a control plane's own system says how far a replacement was: an installer has no member, and
// a worker nothing of etcd's.
func TestWhoIsAheadWithEtcdsCA(t *testing.T) {
	t.Parallel()
	ahead := Seen{CATurn: 3, EtcdMember: true}
	installing := ahead
	installing.Installer = true
	got := EtcdCAAhead([]Node{
		{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: &ahead},
		{Name: "cp2", ControlPlane: true, State: machine.Installing, Seen: &installing},
		{Name: "cp3", ControlPlane: true, State: machine.Ready, Seen: &Seen{CATurn: 2, EtcdMember: true}},
		{Name: "cp4", ControlPlane: true, State: machine.Ready},
		{Name: "w1", State: machine.Ready, Seen: &ahead},
	}, Choices{EtcdCA: CARotation{Turn: 2}})
	if want := []string{"cp1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// One member at a time, the leader last, and with no other right given.
func TestMembersAreStartedAnewOneAtATime(t *testing.T) {
	t.Parallel()
	base := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2", "cp3"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2", "cp3"}}
	for _, x := range []struct {
		name   string
		change func(*Choices, []Node)
		want   string
	}{
		{"the first that does not lead", func(*Choices, []Node) {}, "cp2"},
		{"the leader, when it is the only one left", func(_ *Choices, n []Node) { n[1].Seen.CAStale, n[2].Seen.CAStale = false, false }, "cp1"},
		{"nobody, while one is not well", func(_ *Choices, n []Node) { n[2].Seen.Etcd.Fit = false }, ""},
		{"nobody, while one is silent", func(_ *Choices, n []Node) { n[2].Seen = nil }, ""},
		{"nobody, while one joins", func(c *Choices, _ []Node) { c.EtcdJoining = "cp4" }, ""},
		{"nobody, while a database is tended", func(c *Choices, _ []Node) { c.EtcdTending = "cp3" }, ""},
		{"nobody, while etcd begins anew", func(c *Choices, _ []Node) { c.EtcdAlone = "cp1" }, ""},
		{"nobody, while an API server starts anew", func(c *Choices, _ []Node) { c.Renewing = "cp3" }, ""},
		{"nobody, while no other API server is ready", func(_ *Choices, n []Node) {
			n[0].Seen.APIServerReady, n[2].Seen.APIServerReady = false, false
			n[0].Seen.CAStale, n[2].Seen.CAStale = false, false
		}, ""},
		{"the one that has it, until it is well", func(c *Choices, n []Node) {
			c.EtcdRestarting = "cp3"
			n[2].Seen.Etcd.Fit, n[2].Seen.CAStale = false, false
		}, "cp3"},
		{"the next one then", func(c *Choices, n []Node) { c.EtcdRestarting = "cp3"; n[2].Seen.CAStale = false }, "cp2"},
		{"nobody any more", func(c *Choices, n []Node) { c.EtcdRestarting = "cp3"; n[2].Gone, n[2].Seen = true, nil }, ""},
		{"nobody, when it is installed again", func(c *Choices, n []Node) { c.EtcdRestarting = "cp3"; n[2].Seen.Installer = true }, ""},
		{"nobody, when it is retired", func(c *Choices, n []Node) { c.EtcdRestarting = "cp3"; n[2].State = machine.Retired }, ""},
		{"nobody, when it is a worker now", func(c *Choices, n []Node) { c.EtcdRestarting = "cp3"; n[2].ControlPlane = false }, ""},
		{"the next one, when nobody knows it", func(c *Choices, _ []Node) { c.EtcdRestarting = "cp9" }, "cp2"},
		{"nobody who is no voter", func(c *Choices, n []Node) {
			c.EtcdVoters = []string{"cp1", "cp2"}
			n[0].Seen.CAStale, n[1].Seen.CAStale = false, false
		}, ""},
		{"nobody, while one is at it still", func(_ *Choices, n []Node) { n[1].Seen.Etcd.Busy = true }, ""},
	} {
		var nodes []Node
		for _, name := range base.EtcdVoters {
			nodes = append(nodes, Node{Name: name, ControlPlane: true, State: machine.Ready, Seen: &Seen{Joined: true, APIServerReady: true, EtcdHealthy: true, CAStale: true, Etcd: Keeping{Fit: true, Leader: name == "cp1"}}})
		}
		c := base
		x.change(&c, nodes)
		if got := chooseRestarting(nodes, c); got.EtcdRestarting != x.want {
			t.Errorf("%s: %q, want %q", x.name, got.EtcdRestarting, x.want)
		}
		if x.want == "" {
			continue
		}
		c.EtcdRestarting = x.want
		if !Direct(nodes, c, x.want).EtcdRestart {
			t.Errorf("%s: %s is not told", x.name, x.want)
		}
		nodes[0].Seen.Outdated, nodes[0].Seen.Etcd.Worth = true, true
		if got := Choose(nodes, c); got.Renewing != "" || got.EtcdTending != "" || got.EtcdJoining != "" {
			t.Errorf("%s: another right is given meanwhile: %+v", x.name, got)
		}
	}
}
