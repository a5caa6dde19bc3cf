package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

const snapshotContent = "a database with its digest"

func snapshotSum() string {
	sum := sha256.Sum256([]byte(snapshotContent))
	return hex.EncodeToString(sum[:])
}

// restoreRun tells cp1 to begin anew out of snapshotContent.
func restoreRun(l *lab, id string) *api.Run {
	run := aloneRun(l, id)
	run.Etcd.Restores = 2
	run.Etcd.Snapshot, run.Etcd.Begin = &api.EtcdSnapshot{Sha256: snapshotSum(), Size: uint64(len(snapshotContent))}, true
	return run
}

// utility is etcdutl: it makes the data of member 77, the only one.
type utility struct {
	l *lab
	m *members
	// fails is what it ends with; ran counts its ends that were good.
	fails error
	ran   int
}

func newUtility(l *lab, m *members) *utility {
	u := &utility{l: l, m: m}
	l.node.Program("etcdutl", func(cmd host.Command) ([]byte, error) {
		if u.fails != nil {
			return nil, u.fails
		}
		if slices.Contains(cmd.Argv, "status") {
			if got, want := strings.Join(cmd.Argv, " "), "etcdutl snapshot status "+snapshotPath(snapshotSum())+" --write-out json"; got != want {
				l.t.Errorf("got  %s\nwant %s", got, want)
			}
			return []byte(`{"hash":1,"revision":1000000000017,"totalKey":3,"totalSize":4096,"version":"3.6.0"}`), nil
		}
		want := "etcdutl snapshot restore " + snapshotPath(snapshotSum()) + " --data-dir " + restoreDir +
			" --name cp1 --initial-cluster cp1=https://127.0.0.1:2380 --initial-advertise-peer-urls https://127.0.0.1:2380" +
			" --initial-cluster-token t-"
		if got := strings.Join(cmd.Argv, " "); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, " --bump-revision 999999999983 --mark-compacted") {
			l.t.Errorf("got  %s\nwant %s...", got, want)
		}
		if l.read(snapshotPath(snapshotSum())) != snapshotContent {
			return nil, errors.New("there is no such snapshot")
		}
		if l.exists(restoreDir) {
			return nil, fmt.Errorf("data-dir %q not empty or could not be read", restoreDir)
		}
		if l.node.Units()[etcd.Unit] == "active" || l.exists(etcd.ConfigPath) {
			l.t.Error("etcd runs, or could be started, while its data is made anew")
		}
		l.put(restoreDir+"/member/wal/0.wal", "77")
		m.list = []etcd.Peer{peer(77, "cp1", "127.0.0.1")}
		u.ran++
		return nil, nil
	})
	return u
}

// send hands the snapshot over, as the node API does.
func send(n *node, run *api.Run, sum, content string) error {
	n.use(run)
	in, err := n.TakeEtcdSnapshot(sum)
	if err != nil || in == nil {
		return err
	}
	defer in.Close()
	if _, err := in.Write([]byte(content)); err != nil {
		return err
	}
	return in.Keep()
}

func TestEtcdBeginsAnewOutOfASnapshot(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"data that is bad", "an empty disk"} {
		l := newLab(t)
		programs(l).ready = true
		m := left(l)
		if name == "an empty disk" {
			for _, p := range []string{etcd.DataDir, etcd.ConfigPath} {
				if err := l.node.Remove(p); err != nil {
					t.Fatal(err)
				}
			}
			l.node.SetUnit(etcd.Unit, "inactive")
		}
		u := newUtility(l, m)
		n, run := l.newNode(), restoreRun(l, "flood")
		waits := func(want string) {
			t.Helper()
			out := once(n, run)
			i := slices.IndexFunc(out.steps, func(s *api.StepStatus) bool { return s.GetName() == "etcd-restored" })
			if out.done || i < 0 || out.steps[i].GetDetail() != want || u.ran > 0 {
				t.Fatalf("%s: %s", name, out.steps)
			}
		}
		waits("it waits for the snapshot, which imagectl etcd restore sends")
		if got := n.observe(t.Context(), run, outcome{}).etcd.GetSnapshot(); got != "" {
			t.Errorf("%s: it reports %q", name, got)
		}
		if err := send(n, run, snapshotSum(), snapshotContent); err != nil {
			t.Fatal(err)
		}
		if got := n.observe(t.Context(), run, outcome{}).etcd.GetSnapshot(); got != snapshotSum() {
			t.Errorf("%s: it reports %q", name, got)
		}
		run.Etcd.Begin = false
		waits("the snapshot is here; the other members stop first")
		if name != "an empty disk" && (l.read(wal) != "9" || l.node.Units()[etcd.Unit] != "active") {
			t.Errorf("%s: it has begun with %q", name, l.read(wal))
		}
		run.Etcd.Begin = true
		out := once(n, run)
		if !slices.Contains(out.changed, "etcd-restored") || !out.done || u.ran != 1 || l.read(wal) != "77" {
			t.Fatalf("%s: changed %v\n%s\n%s", name, out.changed, states(out), l.log)
		}
		for _, p := range []string{beforeDir, restoreDir, snapshotsPath, memberPath} {
			if l.exists(p) {
				t.Errorf("%s: %s is there still", name, p)
			}
		}
		if e := n.observe(t.Context(), run, out).etcd; e.GetAlone() != "flood" || e.GetSnapshot() != "" {
			t.Errorf("%s: it reports %v", name, e)
		}
		if again := once(n, run); len(again.changed) != 0 || !again.done || u.ran != 1 {
			t.Errorf("%s: the second run changed %v: %s", name, again.changed, states(again))
		}
		// From now on it is a member like any.
		run.Etcd.Action, run.Etcd.Snapshot = api.EtcdWanted_ACTION_RUN, nil
		if out := once(n, run); len(out.changed) != 0 || !out.done {
			t.Errorf("%s: as a member it changed %v: %s", name, out.changed, states(out))
		}
	}
}

// What is not the file that the server told of does not stay, and a node that was told of none
// takes none.
func TestOnlyTheSnapshotThatWasAnnouncedIsKept(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n, run := l.newNode(), restoreRun(l, "flood")
	if err := send(n, aloneRun(l, "fire"), snapshotSum(), snapshotContent); !errors.Is(err, nodeapi.ErrNotArmed) {
		t.Errorf("told of none: %v", err)
	}
	if err := send(n, run, strings.Repeat("a", 64), snapshotContent); !errors.Is(err, nodeapi.ErrNotArmed) {
		t.Errorf("told of another: %v", err)
	}
	for content, want := range map[string]string{
		snapshotContent + "!":                         "more than the 26 bytes",
		snapshotContent[:25]:                          "it has 25 bytes, 26 were announced",
		strings.Replace(snapshotContent, "a", "b", 1): "its SHA-256 is ",
	} {
		if err := send(n, run, snapshotSum(), content); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
		if found, err := l.node.Glob(snapshotsPath + "/*"); err != nil || len(found) > 0 {
			t.Errorf("%q: there is %v, %v", content, found, err)
		}
	}
	huge := restoreRun(l, "flood")
	huge.Etcd.Snapshot.Size = nodeapi.SnapshotMax + 1
	if err := send(n, huge, snapshotSum(), snapshotContent); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too large: %v", err)
	}
	if err := send(n, run, snapshotSum(), snapshotContent); err != nil {
		t.Fatal(err)
	}
	n.use(run)
	if in, err := n.TakeEtcdSnapshot(snapshotSum()); err != nil || in != nil {
		t.Errorf("the second time: %v %v", in, err)
	}
	if mode, err := l.node.Mode(snapshotPath(snapshotSum())); err != nil || mode != 0o600 {
		t.Errorf("mode %v, %v", mode, err)
	}
}

// A snapshot that etcdutl refuses leaves the old data where it is.
func TestABadSnapshotTakesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	u := newUtility(l, left(l))
	u.fails = errors.New("expected sha256 [1], got [2]")
	n, run := l.newNode(), restoreRun(l, "flood")
	if err := send(n, run, snapshotSum(), snapshotContent); err != nil {
		t.Fatal(err)
	}
	if out := once(n, run); out.done || !strings.Contains(states(out), "etcd-restored=failed") || l.read(wal) != "9" {
		t.Errorf("%s, data of %q", states(out), l.read(wal))
	}
}

// TestBeginningAnewKilledAnywhere kills the agent before and after each start and stop of etcd and
// each program. Once the new etcd was started, its data is never replaced again: somebody may have
// written to it.
func TestBeginningAnewKilledAnywhere(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		l := newLab(t)
		programs(l).ready = true
		m := left(l)
		u := newUtility(l, m)
		run := restoreRun(l, "flood")
		n := l.newNode()
		if err := send(n, run, snapshotSum(), snapshotContent); err != nil {
			t.Fatal(err)
		}
		count, killing, started := 0, true, -1
		kill := func() {
			if count++; killing && count == at {
				panic(killed{})
			}
		}
		real := l.node.Exec
		l.node.Exec = func(ctx context.Context, cmd host.Command) ([]byte, error) {
			kill()
			defer kill()
			if slices.Equal(cmd.Argv[:2], []string{"systemctl", "start"}) && slices.Contains(cmd.Argv, etcd.Unit) && started < 0 {
				started = u.ran
			}
			return real(ctx, cmd)
		}
		if !dies(func() { once(n, run) }) {
			if at < 12 {
				t.Errorf("only %d places to be killed at", at)
			}
			return
		}
		killing = false
		out := once(l.newNode(), run)
		if !out.done || len(m.list) != 1 || l.read(wal) != "77" || l.exists(beforeDir) || l.exists(snapshotsPath) || started != u.ran {
			t.Errorf("killed at %d: %s\nmembers %+v, data of %q, restored %d times and %d before its start\n%s", at, states(out), m.list, l.read(wal), u.ran, started, l.log)
		}
	}
}

// Killed between the two renames, it has the old data aside and none in its place.
func TestBeginningAnewKilledBetweenRenames(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	u := newUtility(l, left(l))
	n, run := l.newNode(), restoreRun(l, "flood")
	if err := send(n, run, snapshotSum(), snapshotContent); err != nil {
		t.Fatal(err)
	}
	l.node.SetUnit(etcd.Unit, "inactive")
	if err := errors.Join(l.node.Rename(memberDir, beforeDir), l.node.Remove(etcd.ConfigPath)); err != nil {
		t.Fatal(err)
	}
	l.put(restoreDir+"/member/wal/0.wal", "half")
	if out := once(n, run); !out.done || u.ran != 1 || l.read(wal) != "77" {
		t.Errorf("%s, data of %q", states(out), l.read(wal))
	}
}

// Killed at each moment of the change, and the new etcd never answers: the old data is still there,
// whatever was done again. It goes when the new answers.
func TestTheOldDataStaysUntilTheNewAnswers(t *testing.T) {
	t.Parallel()
	const kept = beforeDir + "/wal/0.wal"
	for name, killed := range map[string]func(l *lab) error{
		"before the first rename": func(l *lab) error { return nil },
		"between the renames":     func(l *lab) error { return l.node.Rename(memberDir, beforeDir) },
		"after the second rename": func(l *lab) error {
			return errors.Join(l.node.Rename(memberDir, beforeDir), l.node.Rename(restoreDir+"/member", memberDir))
		},
		"when the file says so": func(l *lab) error {
			l.put(restoredPath, "flood\n")
			return errors.Join(l.node.Rename(memberDir, beforeDir), l.node.Rename(restoreDir+"/member", memberDir))
		},
	} {
		l := newLab(t)
		programs(l).ready = true
		m := left(l)
		u := newUtility(l, m)
		n, run := l.newNode(), restoreRun(l, "flood")
		if err := send(n, run, snapshotSum(), snapshotContent); err != nil {
			t.Fatal(err)
		}
		l.node.SetUnit(etcd.Unit, "inactive")
		l.put(restoreDir+"/member/wal/0.wal", "77")
		if err := errors.Join(killed(l), l.node.Remove(etcd.ConfigPath)); err != nil {
			t.Fatal(err)
		}
		// Twice: it is killed again, and again nothing answers.
		for range 2 {
			starting := l.node.Exec
			l.node.Exec = func(ctx context.Context, cmd host.Command) ([]byte, error) {
				if slices.Contains(cmd.Argv, "start") && slices.Contains(cmd.Argv, etcd.Unit) {
					return nil, errors.New("etcd does not start")
				}
				return starting(ctx, cmd)
			}
			if out := once(l.newNode(), run); out.done || !strings.Contains(states(out), "etcd-restored=failed") {
				t.Errorf("%s: %s", name, states(out))
			}
			if l.read(kept) != "9" || l.read(wal) != "77" {
				t.Errorf("%s: kept %q, in its place %q", name, l.read(kept), l.read(wal))
			}
			if err := l.node.Remove(restoredPath); err != nil { // killed before it was written
				t.Fatal(err)
			}
			l.node.Exec = starting
		}
		if out := once(l.newNode(), run); !out.done || l.exists(beforeDir) || l.read(wal) != "77" || len(m.list) != 1 {
			t.Errorf("%s, and then it answers: %s, restored %d times", name, states(out), u.ran)
		}
	}
}

// A member whose data is given up stops, and nothing starts it; it says so, and no sooner.
func TestAMemberStopsForASnapshotElsewhere(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	left(l)
	n, run := l.newNode(), initRun(l)
	run.Etcd = &api.EtcdWanted{Action: api.EtcdWanted_ACTION_WAIT, Reason: "etcd begins anew with what cp2 has first", Stop: "flood"}
	if got := n.observe(t.Context(), run, outcome{}).etcd.GetStopped(); got != "" {
		t.Errorf("it reports %q while it runs", got)
	}
	out := once(n, run)
	if !slices.Contains(out.changed, "etcd-stopped") || out.done || l.node.Units()[etcd.Unit] != "inactive" || l.exists(etcd.ConfigPath) || l.read(wal) != "9" {
		t.Fatalf("%s, etcd is %s", states(out), l.node.Units()[etcd.Unit])
	}
	if got := n.observe(t.Context(), run, out).etcd.GetStopped(); got != "flood" {
		t.Errorf("it reports %q", got)
	}
	if again := once(n, run); len(again.changed) != 0 {
		t.Errorf("the second run changed %v", again.changed)
	}
	// When it is not to stop after all, it goes on with what it has.
	run.Etcd = &api.EtcdWanted{Action: api.EtcdWanted_ACTION_RUN, ClusterToken: "t"}
	if out := once(n, run); l.node.Units()[etcd.Unit] != "active" || l.read(wal) != "9" {
		t.Errorf("%s", states(out))
	}
}

// Each restore's revisions begin above all that the ones before can have, whichever snapshot it is.
func TestRevisionsNeverComeTwice(t *testing.T) {
	t.Parallel()
	const most = revisionsEach - 1 // that one etcd writes
	for _, tc := range []struct {
		restores, revision, want uint64
	}{
		{1, 500, revisionsEach},
		{2, 500, 2 * revisionsEach},                // the same one again
		{2, revisionsEach + 17, 2 * revisionsEach}, // one of the etcd that was restored
		{3, 2*revisionsEach + most, 3 * revisionsEach},
		{1, 7 * revisionsEach, 8 * revisionsEach}, // the server has forgotten how often
	} {
		if got := tc.revision + bump(tc.restores, tc.revision); got != tc.want {
			t.Errorf("restore %d of revision %d begins at %d, want %d", tc.restores, tc.revision, got, tc.want)
		}
	}
}

// A restore is called off: what was sent goes from the disk, and etcd runs as it did.
func TestASnapshotIsForgottenWhenTheRestoreIsCalledOff(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	m := left(l)
	u := newUtility(l, m)
	n, run := l.newNode(), restoreRun(l, "flood")
	run.Etcd.Begin = false
	if err := send(n, run, snapshotSum(), snapshotContent); err != nil {
		t.Fatal(err)
	}
	if !l.exists(snapshotPath(snapshotSum())) {
		t.Fatal("it was not kept")
	}
	run.Etcd.Action, run.Etcd.Snapshot, run.Etcd.Alone = api.EtcdWanted_ACTION_RUN, nil, ""
	once(n, run)
	if l.exists(snapshotsPath) || u.ran > 0 || l.node.Units()[etcd.Unit] != "active" {
		t.Errorf("the snapshot is there: %v, etcdutl ran %d times, etcd is %s", l.exists(snapshotsPath), u.ran, l.node.Units()[etcd.Unit])
	}
	if err := send(n, run, snapshotSum(), snapshotContent); !errors.Is(err, nodeapi.ErrNotArmed) {
		t.Errorf("it takes another one: %v", err)
	}
	for _, s := range n.steps(run) {
		if s.Name == "etcd-snapshot-forgotten" {
			t.Error("there is nothing to forget, and a step for it")
		}
	}
}
