package coordinator

import (
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// member is one voter in the world of the model: what it is, not what it said.
type member struct {
	// away says nothing to the server; ill does not follow a leader.
	away, ill bool
	// worth: its database is large and mostly holes. works: it is being defragmented.
	worth, works bool
	// knows: the agent that runs is the one that began it. tended: it was done lately.
	knows, tended bool
}

// world is a state of the model: comparable, so that it can be remembered.
type world struct {
	members [5]member
	leader  int
	tending string
}

func name(i int) string { return [...]string{"cp1", "cp2", "cp3", "cp4", "cp5"}[i] }

// nodes is what the coordinator is told.
func (w world) nodes(voters int) []Node {
	var out []Node
	for i, m := range w.members[:voters] {
		n := Node{Name: name(i), ControlPlane: true, State: machine.Ready}
		if !m.away {
			n.Seen = &Seen{EtcdMember: true, EtcdHealthy: !m.ill, Joined: true, Etcd: Keeping{
				Fit: !m.ill && (!m.works || m.knows), Leader: i == w.leader, Room: true,
				Worth: m.worth, Busy: m.works && m.knows, Tended: m.tended,
			}}
		}
		out = append(out, n)
	}
	return out
}

func (w world) choices(voters int) Choices {
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdTending: w.tending}
	for i := range voters {
		c.EtcdVoters = append(c.EtcdVoters, name(i))
	}
	return c
}

// next are all worlds that one event leads to: the server decides, an agent does what it was
// last told, or something happens to a machine.
func (w world) next(t *testing.T, voters int) []world {
	var out []world
	nodes := w.nodes(voters)
	c := Choose(nodes, w.choices(voters))
	decided := w
	decided.tending = c.EtcdTending
	w.judge(t, voters, c)
	out = append(out, decided)
	with := func(i int, f func(*member)) {
		n := w
		f(&n.members[i])
		out = append(out, n)
	}
	for i, m := range w.members[:voters] {
		alone := true // as the agent sees it, asking the members themselves
		for j, o := range w.members[:voters] {
			alone = alone && (j == i || !o.ill && !o.works)
		}
		if Direct(nodes, c, name(i)).Tend && c.EtcdTending == w.tending && !m.works && !m.tended && !m.ill && alone {
			with(i, func(m *member) { m.works, m.knows = true, true })
		}
		if m.works {
			with(i, func(m *member) { m.tended, m.works, m.knows, m.worth = m.knows, false, false, false })
		} else {
			with(i, func(m *member) { m.worth = true })
			with(i, func(m *member) { m.tended = false })
			with(i, func(m *member) { m.ill = !m.ill })
		}
		with(i, func(m *member) { m.away = !m.away })
		with(i, func(m *member) { m.knows = false }) // its agent is killed
	}
	for i := range voters {
		n := w
		n.leader = i
		out = append(out, n)
	}
	return out
}

// judge is what has to hold of each decision.
func (w world) judge(t *testing.T, voters int, c Choices) {
	t.Helper()
	if c.EtcdTending == "" {
		return
	}
	for i, m := range w.members[:voters] {
		if m.away || m.ill {
			t.Fatalf("%s is tended while %s is not well: %+v", c.EtcdTending, name(i), w)
		}
		if m.works && c.EtcdTending != name(i) {
			t.Fatalf("%s is tended while %s is at it: %+v", c.EtcdTending, name(i), w)
		}
	}
	if w.tending != "" {
		return
	}
	for i, m := range w.members[:voters] {
		if name(i) == c.EtcdTending && i == w.leader {
			for j, o := range w.members[:voters] {
				if j != i && o.worth && !o.tended {
					t.Fatalf("the leader %s comes before %s: %+v", name(i), name(j), w)
				}
			}
		}
		if name(i) == c.EtcdTending && (!m.worth || m.tended) {
			t.Fatalf("%s is tended for nothing: %+v", name(i), w)
		}
	}
}

// Every world that 1 and 3 members can get into, whatever happens in whatever order: never two
// at once, never while one is not well, the leader last.
func TestMembersAreTendedOneAtATime(t *testing.T) {
	t.Parallel()
	for _, voters := range []int{1, 3} {
		seen := map[world]bool{{}: true}
		most := 0
		for todo := []world{{}}; len(todo) > 0; {
			w := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			works := 0
			for _, m := range w.members {
				if m.works {
					works++
				}
			}
			if most = max(most, works); works > 1 {
				t.Fatalf("%d members are defragmented at once: %+v", works, w)
			}
			for _, n := range w.next(t, voters) {
				if !seen[n] {
					seen[n] = true
					todo = append(todo, n)
				}
			}
		}
		t.Logf("%d members: %d worlds", voters, len(seen))
		if most != 1 {
			t.Errorf("of %d members %d were ever defragmented at once, want 1", voters, most)
		}
	}
}

// Five members have too many worlds to walk through: each that they can be in, one by one.
func TestOneOfFiveIsTended(t *testing.T) {
	t.Parallel()
	kinds := []member{{}, {worth: true}, {away: true, worth: true}, {ill: true}, {works: true, knows: true, worth: true}, {works: true}, {tended: true, worth: true}}
	given, all := 0, 1
	for range 5 {
		all *= len(kinds)
	}
	for at := range all {
		for leader := range 5 {
			w := world{leader: leader}
			for i, rest := 0, at; i < 5; i, rest = i+1, rest/len(kinds) {
				w.members[i] = kinds[rest%len(kinds)]
			}
			c := Choose(w.nodes(5), w.choices(5))
			w.judge(t, 5, c)
			if c.EtcdTending != "" {
				given++
			}
		}
	}
	// All are well: 3 kinds for each, without those in which nobody is worth it.
	if want := (243 - 32) * 5; given != want {
		t.Errorf("the right was given %d times of %d, want %d", given, all*5, want)
	}
}

// What an operator reads while databases are tended, told as a story.
func TestTendingAsAStory(t *testing.T) {
	t.Parallel()
	well := func(leader, worth bool) *Seen {
		return &Seen{EtcdMember: true, EtcdHealthy: true, Joined: true, Etcd: Keeping{Fit: true, Leader: leader, Worth: worth, Room: true}}
	}
	nodes := []Node{
		{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: well(true, true)},
		{Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: well(false, true)},
		{Name: "cp3", ControlPlane: true, State: machine.Ready, Seen: well(false, false)},
	}
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2", "cp3"}}
	says := func(when, tending, want string) {
		t.Helper()
		c = Choose(nodes, c)
		if c.EtcdTending != tending {
			t.Errorf("%s: %q is tended, want %q", when, c.EtcdTending, tending)
		}
		for _, n := range nodes {
			if d := Direct(nodes, c, n.Name); d.Tend != (n.Name == tending) {
				t.Errorf("%s: %s is told %v", when, n.Name, d.Tend)
			}
		}
		if got := EtcdSummary(nodes, c); !strings.Contains(got, want) || want == "" && strings.Contains(got, "defragment") {
			t.Errorf("%s: it says %q, want %q", when, got, want)
		}
	}
	says("two are worth it, one leads", "cp2", "the database of cp2 is defragmented, one member at a time")
	nodes[2].State = machine.Retired
	nodes[2].Seen.EtcdMembers, nodes[0].Seen.EtcdMembers, nodes[1].Seen.EtcdMembers = nil, []string{"cp1", "cp2", "cp3"}, []string{"cp1", "cp2", "cp3"}
	says("cp3 is retired", "", "to be defragmented: cp1, cp2; the member of cp3 is removed first")
	nodes[2].State, c.EtcdLeaving, c.EtcdRemover = machine.Ready, "", ""
	nodes[2].Seen = &Seen{EtcdMember: true}
	says("cp3 is not well", "", "to be defragmented: cp1, cp2; not while it is not well: cp3")
	nodes[2].Seen = well(false, false)
	says("it is well again", "cp2", "the database of cp2 is defragmented, one member at a time")
	nodes[1].Seen.Etcd = Keeping{Fit: true, Tended: true, Room: true}
	says("cp2 is done", "cp1", "the database of cp1 is defragmented, one member at a time")
	nodes[0].Seen.Etcd.Tended = true
	says("cp1 has failed", "", "to be defragmented: cp1; it was tried, and is tried again within ten minutes")
	nodes[0].Seen.Etcd = Keeping{Fit: true, Leader: true, Room: true}
	says("all are done", "", "")

	var why string
	if c, why = AskTending(nodes, c, "cp3"); why != "" {
		t.Fatal(why)
	}
	says("an operator asks for cp3", "cp3", "the database of cp3 is defragmented, one member at a time")
	if d := Direct(nodes, c, "cp3"); !d.TendAsked {
		t.Error("cp3 is not told that an operator asks")
	}
	nodes[2].Seen.Etcd.Tended = true
	says("cp3 is done", "", "")
	if len(c.EtcdAsked) > 0 {
		t.Errorf("%v is still asked for", c.EtcdAsked)
	}
	if _, why := AskTending(nodes, c, "w1"); why != "it is no member of etcd with a vote" {
		t.Errorf("asking for a worker: %q", why)
	}

	// NOSPACE: whoever has no room first, and the last disarms it; or anybody, if nobody did.
	for i := range nodes {
		nodes[i].Seen.Etcd = Keeping{Fit: true, Full: true, Leader: i == 0}
		nodes[i].Seen.EtcdHealthy = false
	}
	says("etcd is full", "cp2", "the database of cp2 is compacted and defragmented, for etcd is full, one member at a time")
	nodes[1].Seen.Etcd.Tended, nodes[1].Seen.Etcd.Room = true, true
	says("cp2 has room", "cp3", "the database of cp3 is compacted")
	nodes[2].Seen.Etcd.Tended, nodes[2].Seen.Etcd.Room = true, true
	says("cp3 has room", "cp1", "the database of cp1 is compacted")
	nodes[0].Seen.Etcd.Tended, nodes[0].Seen.Etcd.Room = true, true
	says("all have, and cp1 was killed before it disarmed", "", "it was tried, and is tried again within ten minutes")
	nodes[0].Seen.Etcd.Tended = false
	says("ten minutes later", "cp1", "the database of cp1 is compacted")
}

// Nobody joins while a database is defragmented, and none is while somebody joins.
func TestTendingAndJoiningAreOneRight(t *testing.T) {
	t.Parallel()
	voter := func(k Keeping) *Seen { return &Seen{EtcdMember: true, EtcdHealthy: true, Etcd: k} }
	nodes := []Node{
		{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: voter(Keeping{Fit: true, Worth: true, Leader: true})},
		{Name: "cp2", ControlPlane: true, State: machine.Installed},
	}
	c := Choose(nodes, Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1"}})
	if c.EtcdTending != "cp1" {
		t.Fatalf("%q is tended", c.EtcdTending)
	}
	nodes[1].Seen = &Seen{EtcdEmpty: true}
	if c = Choose(nodes, c); c.EtcdJoining != "" || c.EtcdTending != "cp1" {
		t.Errorf("cp2 comes: %+v", c)
	}
	c.EtcdTending = ""
	nodes[0].Seen = voter(Keeping{Fit: true, Worth: true, Busy: true})
	if c = Choose(nodes, c); c.EtcdJoining != "" || c.EtcdTending != "" {
		t.Errorf("cp1 is at it without the right: %+v", c)
	}
	nodes[0].Seen = voter(Keeping{Fit: true, Worth: true})
	if c = Choose(nodes, c); c.EtcdJoining != "cp2" || c.EtcdTending != "" {
		t.Errorf("joining comes first: %+v", c)
	}
}

func TestMayPause(t *testing.T) {
	t.Parallel()
	well := &Seen{EtcdMember: true, EtcdHealthy: true}
	nodes := []Node{
		{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: well}, {Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: well},
		{Name: "cp3", ControlPlane: true, State: machine.Ready, Seen: well}, {Name: "w1", State: machine.Ready, Seen: &Seen{}},
	}
	for _, tc := range []struct {
		name   string
		voters []string
		ill    int
		want   string
	}{
		{"w1", []string{"cp1", "cp2", "cp3"}, -1, ""},
		{"cp1", []string{"cp1", "cp2", "cp3"}, -1, ""},
		{"cp1", []string{"cp1", "cp2", "cp3"}, 0, ""},
		{"cp1", []string{"cp1", "cp2", "cp3"}, 2, "it is one of 3 etcd voters, quorum is 2 and 1 of the others are healthy, not cp3; while it is away for rebooting nothing can be written"},
		{"cp1", []string{"cp1", "cp2"}, -1, "it is one of 2 etcd voters, quorum is 2 and 1 of the others are healthy; while it is away for rebooting nothing can be written"},
		{"cp1", []string{"cp1"}, -1, "it is the only etcd voter; while it is away for rebooting nothing can be written"},
	} {
		now := append([]Node(nil), nodes...)
		if tc.ill >= 0 {
			now[tc.ill].Seen = &Seen{EtcdMember: true}
		}
		ok, why := MayPause(now, Choices{EtcdVoters: tc.voters}, tc.name, "rebooting")
		if why != tc.want || ok != (why == "") {
			t.Errorf("%s of %v, %d ill: %v %q, want %q", tc.name, tc.voters, tc.ill, ok, why, tc.want)
		}
	}
}
