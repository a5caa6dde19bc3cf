//go:build judge

package etcd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"sigs.k8s.io/yaml"

	"github.com/imagectl/imagectl/test/daemon"
)

// trio are three real etcd processes on loopback, without TLS: what is judged here is upkeep.
type trio struct {
	t         *testing.T
	bin       string
	endpoints []string
	cluster   *Cluster
	client    *clientv3.Client
}

func newTrio(t *testing.T, quota int64) *trio {
	t.Helper()
	tr := &trio{t: t, bin: os.Getenv("IMAGECTL_ETCD")}
	if tr.bin == "" {
		t.Fatal("IMAGECTL_ETCD has to name the directory of etcd, etcdctl and etcdutl; make native sets it")
	}
	port := func() string { return "http://" + daemon.Address(t) }
	var peers, all []string
	for i := range 3 {
		tr.endpoints, peers = append(tr.endpoints, port()), append(peers, port())
		all = append(all, fmt.Sprintf("cp%d=%s", i+1, peers[i]))
	}
	dir := t.TempDir()
	for i := range 3 {
		log, err := os.Create(filepath.Join(dir, fmt.Sprintf("cp%d.log", i+1)))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(tr.bin, "etcd"), "--name", fmt.Sprintf("cp%d", i+1), "--data-dir", filepath.Join(dir, fmt.Sprintf("cp%d", i+1)),
			"--listen-client-urls", tr.endpoints[i], "--advertise-client-urls", tr.endpoints[i], "--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(all, ","), "--quota-backend-bytes", fmt.Sprint(quota), "--unsafe-no-fsync", "--heartbeat-interval", "500", "--election-timeout", "5000")
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			log.Close()
		})
	}
	var err error
	if tr.cluster, err = Open(t.Context(), tr.endpoints, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.cluster.Close() })
	if tr.client, err = clientv3.New(clientv3.Config{Endpoints: tr.endpoints, Logger: zap.NewNop()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.client.Close() })
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		well := 0
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		members, err := tr.cluster.Members(ctx)
		cancel()
		for _, m := range members {
			if m.Follows {
				well++
			}
		}
		if well == 3 {
			return tr
		}
		if time.Now().After(end) {
			t.Fatalf("three members do not come up: %v %v", members, err)
		}
	}
}

func (tr *trio) members() []Peer {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), time.Minute)
	defer cancel()
	m, err := tr.cluster.Members(ctx)
	if err != nil {
		tr.t.Fatal(err)
	}
	return m
}

// tend is one member's whole turn, as the agent does it.
func (tr *trio) tend(id uint64, tending Tending) []Do {
	tr.t.Helper()
	var did []Do
	for range 5 {
		members := tr.members()
		d := Tend(id, tending, members)
		tr.t.Logf("%x: %s: %s", id, d.Do, d.Reason)
		var err error
		switch d.Do {
		case DoNothing:
			return did
		case DoCompact:
			err, tending.Compacted = tr.cluster.Compact(tr.t.Context()), true
		case DoDefragment:
			err, tending.Defragmented = tr.cluster.Defragment(tr.t.Context(), endpoint(members, id)), true
		case DoDisarm:
			err = tr.cluster.Disarm(tr.t.Context())
		default:
			tr.t.Fatalf("%+v", d)
		}
		if err != nil {
			tr.t.Fatal(err)
		}
		did = append(did, d.Do)
	}
	tr.t.Fatalf("no end: %v", did)
	return nil
}

func endpoint(members []Peer, id uint64) string {
	for _, m := range members {
		if m.ID == id {
			return m.ClientURLs[0]
		}
	}
	return ""
}

// run runs one of etcd's own tools.
func (tr *trio) run(program string, argv ...string) string {
	tr.t.Helper()
	out, err := exec.Command(filepath.Join(tr.bin, program), argv...).CombinedOutput()
	if err != nil {
		tr.t.Fatalf("%s %v: %v\n%s", program, argv, err, out)
	}
	return string(out)
}

// fill writes values of 1 MiB over and over to few keys, which leaves garbage in the database.
func (tr *trio) fill(mib int) error {
	b := make([]byte, 1<<20)
	source := rand.NewChaCha8([32]byte{1})
	for i := range mib {
		_, _ = source.Read(b)
		ctx, cancel := context.WithTimeout(tr.t.Context(), time.Minute)
		_, err := tr.client.Put(ctx, fmt.Sprintf("garbage/%d", i%4), string(b))
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// A database that is mostly garbage shrinks on each member, one after the other, while somebody
// writes: no acknowledged write is lost, and etcdctl and etcdutl find all three alike and whole.
func TestDatabasesShrinkWhileSomebodyWrites(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, QuotaBytes)
	if err := tr.fill(160); err != nil {
		t.Fatal(err)
	}
	for _, m := range tr.members() {
		if m.Storage.Worth() || m.Storage.Size < 150<<20 {
			t.Errorf("before the compaction: %+v", m.Storage)
		}
	}
	// kube-apiserver's part.
	if err := tr.cluster.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	var acked []string
	defer writer.Wait()
	defer stop()
	began := make(chan struct{})
	writer.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			key := fmt.Sprintf("kept/%08d", i)
			call, cancel := context.WithTimeout(ctx, time.Minute)
			_, err := tr.client.Put(call, key, "x")
			cancel()
			if err == nil {
				if acked = append(acked, key); len(acked) == 1 {
					close(began)
				}
			}
		}
	})
	<-began
	// The other two compact in their own time.
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		worth := 0
		for _, m := range tr.members() {
			if m.Storage.Worth() {
				worth++
			}
		}
		if worth == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of 3 are worth it", worth)
		}
	}
	var before, after int64
	for _, m := range tr.members() {
		before += m.Storage.Size
		if did := tr.tend(m.ID, Tending{}); fmt.Sprint(did) != "[defragment]" {
			t.Errorf("%s: %v", m.Name, did)
		}
	}
	for _, m := range tr.members() {
		after += m.Storage.Size
		if m.Storage.Size > 30<<20 || m.Storage.Worth() {
			t.Errorf("%s has %+v", m.Name, m.Storage)
		}
	}
	stop()
	writer.Wait()
	t.Logf("from %d MiB to %d MiB in all; %d writes acknowledged meanwhile", before>>20, after>>20, len(acked))
	r, err := tr.client.Get(t.Context(), "kept/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, kv := range r.Kvs {
		have[string(kv.Key)] = true
	}
	for _, key := range acked {
		if !have[key] {
			t.Errorf("%s was acknowledged and is lost", key)
		}
	}
	all := strings.Join(tr.endpoints, ",")
	hashes := map[string]bool{}
	for line := range strings.Lines(tr.run("etcdctl", "--endpoints", all, "endpoint", "hashkv", "--rev", fmt.Sprint(r.Header.Revision))) {
		if f := strings.Split(strings.TrimSpace(line), ", "); len(f) >= 2 {
			hashes[f[1]] = true
		}
	}
	if len(hashes) != 1 {
		t.Errorf("members differ: %v", hashes)
	}
	if out := tr.run("etcdctl", "--endpoints", all, "endpoint", "health"); strings.Count(out, "is healthy") != 3 {
		t.Error(out)
	}
	tr.snapshot(len(acked) + 4)
}

// snapshot takes one and has etcdutl look at it: it counts keys, and refuses one that is damaged.
func (tr *trio) snapshot(keys int) {
	tr.t.Helper()
	in, err := tr.cluster.Snapshot(tr.t.Context())
	if err != nil {
		tr.t.Fatal(err)
	}
	defer in.Close()
	b, err := io.ReadAll(in)
	if err != nil {
		tr.t.Fatal(err)
	}
	path := filepath.Join(tr.t.TempDir(), "etcd.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		tr.t.Fatal(err)
	}
	out := tr.run("etcdutl", "snapshot", "status", path)
	if f := strings.Split(out, ", "); len(f) < 3 || f[2] != fmt.Sprint(keys) && f[2] != fmt.Sprint(keys+1) {
		tr.t.Errorf("etcdutl counts %s, want %d keys", out, keys)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		tr.t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(tr.bin, "etcdutl"), "snapshot", "restore", path, "--data-dir", path+".restored").CombinedOutput(); err == nil {
		tr.t.Errorf("etcdutl restores a damaged snapshot: %s", out)
	}
}

// An etcd that is full takes writes again after each member's turn, the alarm taken back by the last
// one only.
func TestAFullEtcdIsMadeToWriteAgain(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, 64<<20)
	if err := tr.fill(200); err == nil || !strings.Contains(err.Error(), "database space exceeded") {
		t.Fatalf("it is not full: %v", err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		know := 0
		for _, m := range tr.members() {
			if len(m.Alarms) > 0 && m.Alarms[0].Kind == NoSpace && !m.Healthy && m.Follows {
				know++
			}
		}
		if know == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of 3 know that it is full: %+v", know, tr.members())
		}
	}
	if out := tr.run("etcdctl", "--endpoints", tr.endpoints[0], "alarm", "list"); !strings.Contains(out, "NOSPACE") {
		t.Errorf("etcdctl sees no alarm: %s", out)
	}
	for i, m := range tr.members() {
		did := fmt.Sprint(tr.tend(m.ID, Tending{}))
		if want := map[bool]string{false: "[compact defragment]", true: "[compact defragment disarm]"}[i == 2]; did != want {
			t.Errorf("turn %d of %s: %s, want %s", i+1, m.Name, did, want)
		}
	}
	if out := tr.run("etcdctl", "--endpoints", tr.endpoints[0], "alarm", "list"); strings.TrimSpace(out) != "" {
		t.Errorf("there is an alarm still: %s", out)
	}
	if err := tr.fill(4); err != nil {
		t.Errorf("it does not take writes: %v", err)
	}
}

// etcd's own metrics have the histograms that the disk is judged by.
func TestEtcdTellsOfItsDisk(t *testing.T) {
	t.Parallel()
	tr := newTrio(t, QuotaBytes)
	if err := tr.fill(8); err != nil {
		t.Fatal(err)
	}
	d, err := AskDisk(t.Context(), tr.endpoints[0], nil)
	if err != nil || len(d.Fsync) < 10 || len(d.Commit) < 10 || d.Commit[len(d.Commit)-1].Count == 0 {
		t.Errorf("%v %v", d, err)
	}
	// One leader, and another one by order: each member counts it.
	if d.LeaderChanges == 0 {
		t.Error("a member with a leader has seen none come")
	}
	members := tr.members()
	for i, m := range members {
		if m.Leader {
			if err := tr.cluster.MoveLeader(t.Context(), members[(i+1)%3].ID); err == nil {
				break
			}
			from, err := Open(t.Context(), m.ClientURLs, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			if err := from.MoveLeader(t.Context(), members[(i+1)%3].ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		after, err := AskDisk(t.Context(), tr.endpoints[0], nil)
		if err == nil && after.LeaderChanges > d.LeaderChanges {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after another leader: %d changes, before %d: %v", after.LeaderChanges, d.LeaderChanges, err)
		}
	}
}

// The etcd of nodes starts with the times in our file, says so itself, and refuses what it did in
// TestEtcdTakesItsTimesFromTheFile.
func TestTheEtcdOfNodesTakesItsTimes(t *testing.T) {
	t.Parallel()
	bin := os.Getenv("IMAGECTL_ETCD")
	if bin == "" {
		t.Fatal("IMAGECTL_ETCD has to name the directory of etcd, etcdctl and etcdutl; make native sets it")
	}
	const ms = time.Millisecond
	for _, tc := range []struct {
		timing Timing
		said   []string
	}{
		{Timing{}, []string{`"heartbeat-interval":"100ms"`, `"election-timeout":"1s"`}},
		{Timing{500 * ms, 5000 * ms}, []string{`"heartbeat-interval":"500ms"`, `"election-timeout":"5s"`}},
		{Timing{500 * ms, 2499 * ms}, []string{"should be at least as 5 times"}},
		{Timing{1000 * ms, 50_001 * ms}, []string{"is too long"}},
	} {
		dir := t.TempDir()
		m := first()
		m.Timing = tc.timing
		b, err := m.Config()
		if err != nil {
			t.Fatal(err)
		}
		// Without certificates, on any ports: what is judged here are the times.
		var f map[string]any
		if err := yaml.Unmarshal(b, &f); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"client-transport-security", "peer-transport-security", "ClientTLSInfo", "PeerTLSInfo", "tls-min-version"} {
			delete(f, key)
		}
		const at = "http://127.0.0.1:0"
		f["data-dir"], f["initial-cluster"], f["initial-advertise-peer-urls"], f["advertise-client-urls"] = filepath.Join(dir, "data"), "cp1="+at, at, at
		f["listen-peer-urls"], f["listen-client-urls"] = at, at
		if b, err = yaml.Marshal(f); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "etcd.yaml")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "etcd"), "--config-file", path)
		out, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said, all := 0, ""
		for lines := bufio.NewScanner(out); said < len(tc.said) && lines.Scan(); {
			all += lines.Text() + "\n"
			said = 0
			for _, want := range tc.said {
				if strings.Contains(lines.Text(), want) {
					said++
				}
			}
		}
		cancel()
		_ = cmd.Wait()
		if said < len(tc.said) {
			t.Errorf("%s: etcd does not say %q:\n%s", tc.timing, tc.said, all)
		}
	}
}
