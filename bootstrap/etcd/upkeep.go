package etcd

import (
	"fmt"
	"slices"
)

// QuotaBytes is what a member's database may grow to. etcd's documentation advises at most
// 8 GiB; its default of 2 GiB is hit by clusters with many custom resources, and a full etcd
// refuses writes (etcd.io/docs/v3.6/op-guide/maintenance, "Space quota").
const QuotaBytes = 8 << 30

// worthBytes is the size below which nobody gains by a defragmentation: the database starts
// with some MB, and kube-apiserver's compactions free and fill pages all the time.
const worthBytes = 100 << 20

// Storage is how large a member's database is, in bytes. The zero value is not known.
type Storage struct {
	// Size is the file's, Used what of it holds data, Quota what it may grow to.
	Size, Used, Quota int64
}

// Worth says whether defragmenting gives more than half of a large file back.
func (s Storage) Worth() bool { return s.Size > worthBytes && s.Used < s.Size/2 }

// Room says whether the file is well below its quota, by a fifth: who disarms NOSPACE any
// closer to it has it back soon.
func (s Storage) Room() bool { return s.Quota > 0 && s.Size <= s.Quota/5*4 }

// Alarms that etcd raises.
const (
	// NoSpace: a database has reached its quota; etcd refuses what would make it grow.
	NoSpace = "NOSPACE"
	// Corrupt: members differ in their data. etcd refuses writes and cannot say who is right.
	Corrupt = "CORRUPT"
)

// Alarm is one that is raised, and the ID of the member that raised it.
type Alarm struct {
	Kind   string
	Member uint64
}

// Changes of upkeep, besides those of membership.
const (
	// DoCompact: forget all but the newest revision of each key.
	DoCompact Do = "compact"
	// DoDefragment: rewrite this member's database without its holes.
	DoDefragment Do = "defragment"
	// DoDisarm: take NOSPACE back.
	DoDisarm Do = "disarm"
)

// Tending is what one turn of upkeep has done so far, and whether a person asked for it.
type Tending struct {
	Asked, Compacted, Defragmented bool
}

// Tend decides the next thing to be done to the member with an ID, from the members as they
// are now. It is pure. Nothing is done while any other member is not well, or while one is
// being added: the one that is defragmented answers nobody meanwhile.
//
// kube-apiserver cannot compact once NOSPACE is raised, since its compaction begins with a
// write of its own (compact_rev_key); so it is done here.
func Tend(id uint64, t Tending, members []Peer) Decision {
	i := slices.IndexFunc(members, func(m Peer) bool { return m.ID == id })
	if i < 0 || members[i].Learner {
		return Decision{DoWait, id, "this machine's etcd member has no vote"}
	}
	own, full, room := members[i], false, true
	for _, m := range members {
		for _, a := range m.Alarms {
			if a.Kind == Corrupt {
				return Decision{DoWait, id, fmt.Sprintf("etcd has raised %s for %s: nothing is done before a person has looked", Corrupt, labelOf(members, a.Member))}
			}
			full = full || a.Kind == NoSpace
		}
		switch {
		case m.Learner:
			return Decision{DoWait, id, label(m) + " is being added; one thing at a time"}
		case !m.Follows:
			return Decision{DoWait, id, label(m) + " is not well, and a member that is tended answers nobody meanwhile"}
		}
		room = room && m.Storage.Room()
	}
	s := own.Storage
	switch {
	case full && !t.Compacted && !s.Room():
		return Decision{DoCompact, id, fmt.Sprintf("etcd is full: %s of %s", megabytes(s.Size), megabytes(s.Quota))}
	case full && !t.Defragmented && !s.Room():
		// What is in use is not asked: a member counts that anew with its next write only, and
		// etcd refuses those.
		return Decision{DoDefragment, id, fmt.Sprintf("etcd is full: %s of %s, and compacted", megabytes(s.Size), megabytes(s.Quota))}
	case full && !s.Room():
		return Decision{DoNothing, id, fmt.Sprintf("there is no room to be made: %s of %s are in use; delete objects that nobody needs", megabytes(s.Used), megabytes(s.Quota))}
	case !t.Defragmented && s.Worth():
		return Decision{DoDefragment, id, fmt.Sprintf("%s of %s are in use", megabytes(s.Used), megabytes(s.Size))}
	case !t.Defragmented && t.Asked:
		return Decision{DoDefragment, id, fmt.Sprintf("an operator asked for it; %s of %s are in use", megabytes(s.Used), megabytes(s.Size))}
	case full && room:
		return Decision{DoDisarm, id, "every member has room again"}
	}
	return Decision{DoNothing, id, fmt.Sprintf("%s of %s are in use, and it may grow to %s", megabytes(s.Used), megabytes(s.Size), megabytes(s.Quota))}
}

func labelOf(members []Peer, id uint64) string {
	for _, m := range members {
		if m.ID == id {
			return label(m)
		}
	}
	return fmt.Sprintf("member %x", id)
}

// megabytes writes bytes for a person; etcd's own words are in these units too.
func megabytes(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<19)>>20) }

// MayPause says whether etcd keeps its quorum while the member with an ID is away for some
// minutes, and if not, why. It is pure.
func MayPause(id uint64, members []Peer) (bool, string) {
	voters, others, own := 0, 0, false
	for _, m := range members {
		if m.Learner {
			continue
		}
		voters++
		if m.ID == id {
			own = true
		} else if m.Follows {
			others++
		}
	}
	switch {
	case !own || others >= quorum(voters):
		return true, ""
	case voters == 1:
		return false, "this is the only etcd voter: while it is away nothing can be written"
	}
	return false, fmt.Sprintf("%d of the other %d etcd voters are well, quorum is %d of %d: while this one is away nothing can be written", others, voters-1, quorum(voters), voters)
}
