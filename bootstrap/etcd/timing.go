package etcd

import (
	"cmp"
	"fmt"
	"time"

	"sigs.k8s.io/yaml"
)

// Timing is how members keep time; a zero field is etcd's own. etcd reads it when it starts.
type Timing struct {
	// Heartbeat is how often a leader says that it is there, Election how long the others wait for
	// it. Both are whole milliseconds.
	Heartbeat, Election time.Duration
}

// What etcd has where its file says nothing (NewConfig in server/embed/config.go of v3.6.10).
const (
	ownHeartbeat = 100 * time.Millisecond
	ownElection  = time.Second
)

// Equal says whether members keep the same time: what is etcd's own may be said or not.
func (t Timing) Equal(o Timing) bool { return t.full() == o.full() }

// String has both times.
func (t Timing) String() string {
	f := t.full()
	return fmt.Sprintf("a heartbeat of %s and an election timeout of %s", f.Heartbeat, f.Election)
}

func (t Timing) full() Timing {
	return Timing{cmp.Or(t.Heartbeat, ownHeartbeat), cmp.Or(t.Election, ownElection)}
}

// ReadTiming is the timing in a configuration file that Config wrote.
func ReadTiming(config []byte) (Timing, error) {
	var f file
	if err := yaml.Unmarshal(config, &f); err != nil {
		return Timing{}, fmt.Errorf("reading the times in etcd's configuration: %w", err)
	}
	return Timing{time.Duration(f.HeartbeatInterval) * time.Millisecond, time.Duration(f.ElectionTimeout) * time.Millisecond}, nil
}
