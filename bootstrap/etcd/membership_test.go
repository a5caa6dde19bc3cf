package etcd

import (
	"fmt"
	"slices"
	"testing"
)

const me = "https://10.0.0.12:2380"

func voter(id uint64, name string, healthy bool) Peer {
	return Peer{ID: id, Name: name, PeerURLs: []string{"https://10.0.0.1" + name[2:] + ":2380"}, ClientURLs: []string{"https://10.0.0.1" + name[2:] + ":2379"}, Answers: healthy, Healthy: healthy}
}

func learner(p Peer) Peer {
	p.Learner = true
	return p
}

func TestNext(t *testing.T) {
	t.Parallel()
	added := Peer{ID: 2, PeerURLs: []string{me}, Learner: true}
	fresh := Self{Name: "cp2", PeerURL: me}
	data := Self{Name: "cp2", PeerURL: me, HasData: true, ID: 2}
	one, two, three := voter(1, "cp1", true), voter(2, "cp2", false), voter(3, "cp3", true)
	alive := two
	alive.Answers = true
	for _, tc := range []struct {
		name    string
		self    Self
		members []Peer
		want    Decision
	}{
		{"the second", fresh, []Peer{one}, Decision{DoAdd, 0, "1 of 1 voters are healthy; with cp2 quorum is 2 of 2"}},
		{"the third", fresh, []Peer{one, three}, Decision{DoAdd, 0, "2 of 2 voters are healthy; with cp2 quorum is 2 of 3"}},
		{"one of two is down", fresh, []Peer{one, voter(3, "cp3", false)}, Decision{DoWait, 0, "nothing can be added: 1 of 2 voters healthy, quorum is 2"}},
		{"added and killed", fresh, []Peer{one, added}, Decision{DoStart, 2, "cp2 was added and never started"}},
		{"started and killed", data, []Peer{one, added}, Decision{DoPromote, 2, "1 of 1 voters are healthy; with cp2 quorum is 2 of 2"}},
		{"in sync", data, []Peer{one, learner(two)}, Decision{DoPromote, 2, "1 of 1 voters are healthy; with cp2 quorum is 2 of 2"}},
		{"another failed meanwhile", data, []Peer{one, learner(two), three, voter(4, "cp4", false)}, Decision{DoPromote, 2, "2 of 3 voters are healthy; with cp2 quorum is 3 of 4"}},
		{"one of two failed meanwhile", data, []Peer{one, learner(two), voter(3, "cp3", false)},
			Decision{DoWait, 2, "nothing can be promoted: 1 of 2 voters healthy, quorum is 2"}},
		{"promoted and killed", data, []Peer{one, two}, Decision{DoNothing, 2, "cp2 has a vote, one of 2"}},
		{"its data is of an older member", data, []Peer{one, {ID: 5, Name: "cp2", PeerURLs: []string{me}}}, Decision{DoWipe, 0, "etcd does not list the member any more that this machine has the data of"}},
		{"data without a marker", Self{Name: "cp2", PeerURL: me, HasData: true}, []Peer{one, two}, Decision{DoNothing, 2, "cp2 has a vote, one of 2"}},
		{"a learner whose data is lost", fresh, []Peer{one, learner(two)}, Decision{DoRemove, 2, "the learner cp2 (2) has lost its data; it has no vote"}},
		{"a voter of three whose data is lost", fresh, []Peer{one, two, three}, Decision{DoRemove, 2, "the member cp2 (2) has lost its data; 2 of 3 voters are healthy, without it quorum is 2 of 2"}},
		{"a voter of two whose data is lost", fresh, []Peer{one, two}, Decision{DoWait, 2, "the member cp2 (2) has lost its data and cannot be removed: 1 of 2 voters healthy, quorum is 2; restore a snapshot"}},
		{"another machine runs in its place", fresh, []Peer{one, alive, three}, Decision{DoWait, 2, "the member cp2 (2) answers at https://10.0.0.12:2379, although this machine has no data: another machine runs in its place"}},
		{"a learner left behind", fresh, []Peer{one, learner(three)}, Decision{DoRemove, 3, "the learner cp3 (3) was left behind; it has no vote"}},
		{"one left behind that never started", fresh, []Peer{one, {ID: 3, PeerURLs: []string{"https://10.0.0.13:2380"}, Learner: true}},
			Decision{DoRemove, 3, "the learner 3 at https://10.0.0.13:2380 was left behind; it has no vote"}},
	} {
		if got := Next(tc.self, tc.members); got != tc.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

// TestEveryChangeKeepsTheQuorum follows Next from every list of up to five members
// in every condition: no change that it asks for leaves fewer healthy voters than
// a quorum, nothing is started whose data is lost, and it comes to an end.
func TestEveryChangeKeepsTheQuorum(t *testing.T) {
	t.Parallel()
	situations := 0
	for voters := 1; voters <= 5; voters++ {
		for well := range 1 << voters {
			for mine := range 5 { // none, added, a learner, a voter, a voter that answers
				for _, hasData := range []bool{false, true} {
					var members []Peer
					for i := range voters {
						members = append(members, voter(uint64(i+1), fmt.Sprintf("cp%d", i+1), well&(1<<i) != 0))
					}
					self := Self{Name: "new", PeerURL: me, HasData: hasData}
					own := Peer{ID: 99, Name: "new", PeerURLs: []string{me}, ClientURLs: []string{"https://10.0.0.12:2379"}, Learner: mine < 3, Answers: mine == 4}
					if mine == 1 {
						own.Name, own.ClientURLs = "", nil
					}
					if mine > 0 {
						members = append(members, own)
					}
					if hasData && mine > 0 {
						self.ID = 99
					}
					situations++
					follow(t, self, members)
				}
			}
		}
	}
	t.Logf("%d situations", situations)
}

func healthyOf(members []Peer) (well, all int) {
	for _, m := range members {
		if !m.Learner {
			if all++; m.Healthy {
				well++
			}
		}
	}
	return well, all
}

func follow(t *testing.T, self Self, members []Peer) {
	t.Helper()
	begin := fmt.Sprintf("%+v %+v", self, members)
	for range 8 {
		well, all := healthyOf(members)
		d := Next(self, members)
		at := slices.IndexFunc(members, func(m Peer) bool { return m.ID == d.ID })
		switch d.Do {
		case DoWait, DoNothing:
			if d.Reason == "" {
				t.Fatalf("%s: no reason", begin)
			}
			return
		case DoWipe:
			self.HasData, self.ID = false, 0
			continue
		case DoStart:
			if members[at].Name != "" || !members[at].Learner {
				t.Fatalf("%s: %+v starts a member that has lost its data", begin, d)
			}
			members[at].Name, members[at].Answers, self.HasData, self.ID = self.Name, true, true, d.ID
			continue
		}
		if d.Do == DoRemove && members[at].Learner {
			members = slices.Delete(slices.Clone(members), at, at+1)
			continue // that changes no quorum
		}
		if well < all/2+1 {
			t.Fatalf("%s: %+v without a quorum", begin, d)
		}
		switch d.Do {
		case DoAdd:
			members = append(slices.Clone(members), Peer{ID: 100, PeerURLs: []string{self.PeerURL}, Learner: true})
		case DoRemove:
			if members[at].Healthy {
				t.Fatalf("%s: %+v removes a member that is well", begin, d)
			}
			members = slices.Delete(slices.Clone(members), at, at+1)
		case DoPromote:
			members[at].Learner, members[at].Healthy = false, true
		default:
			t.Fatalf("%s: %+v", begin, d)
		}
		if well, all := healthyOf(members); well < all/2+1 {
			t.Fatalf("%s: %+v leaves %d of %d voters healthy", begin, d, well, all)
		}
	}
	t.Fatalf("%s: it comes to no end", begin)
}

func TestInitialCluster(t *testing.T) {
	t.Parallel()
	got := InitialCluster(Self{Name: "cp2", PeerURL: me}, []Peer{voter(3, "cp3", true), {ID: 2, PeerURLs: []string{me}, Learner: true}, voter(1, "cp1", true)})
	if want := "cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380,cp3=https://10.0.0.13:2380"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	one, two, three := voter(1, "cp1", true), voter(2, "cp2", false), voter(3, "cp3", true)
	well := voter(2, "cp2", true)
	for _, tc := range []struct {
		name    string
		members []Peer
		want    Decision
	}{
		{"one of three, without power", []Peer{one, two, three}, Decision{DoRemove, 2, "cp2 (2) is retired; 2 of 3 voters are healthy, without it quorum is 2 of 2"}},
		{"one of three, well", []Peer{one, well, three}, Decision{DoRemove, 2, "cp2 (2) is retired; 3 of 3 voters are healthy, without it quorum is 2 of 2"}},
		{"one of two, well", []Peer{one, well}, Decision{DoRemove, 2, "cp2 (2) is retired; 2 of 2 voters are healthy, without it quorum is 1 of 1"}},
		{"one of two, without power", []Peer{one, two}, Decision{DoWait, 2, "cp2 (2) cannot be removed: 1 of 2 voters healthy, quorum is 2"}},
		{"another one is down too", []Peer{one, two, voter(3, "cp3", false)}, Decision{DoWait, 2, "cp2 (2) cannot be removed: 1 of 3 voters healthy, quorum is 2"}},
		{"the others are not well", []Peer{one, well, voter(3, "cp3", false)}, Decision{DoWait, 2, "removing cp2 (2) would stop etcd: without it 1 of 2 voters healthy, quorum is 2"}},
		{"the only one", []Peer{well}, Decision{DoWait, 2, "removing cp2 (2) would stop etcd: without it 0 of 0 voters healthy, quorum is 1"}},
		{"a learner", []Peer{one, learner(two)}, Decision{DoRemove, 2, "cp2 (2) is a learner; it has no vote"}},
		{"removed before", []Peer{one, three}, Decision{DoNothing, 0, "etcd has no member cp2; it has 2 voters"}},
	} {
		if got := Leave("cp2", tc.members); got != tc.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}
