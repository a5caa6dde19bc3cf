//go:build root

package native

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup/bucket"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/test/daemon"
)

const vaultKey, vaultSecret = "server", "secret-of-the-server"

// vault is a real S3 server with a bucket.
func vault(t *testing.T) (*bucket.Bucket, *minio.Client) {
	t.Helper()
	program := os.Getenv("NATIVE_VERSITYGW")
	if program == "" {
		t.Fatal("NATIVE_VERSITYGW does not say where versitygw is: run this by make drills")
	}
	run(t, "ip", "link", "set", "lo", "up")
	address := daemon.Address(t)
	cmd := exec.Command(program, "--quiet", "--port", address, "--access", vaultKey, "--secret", vaultSecret, "posix", t.TempDir())
	daemon.Start(t, cmd, "make drills installs it", func() error {
		resp, err := http.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	client, err := minio.New(address, &minio.Options{Creds: credentials.NewStaticV4(vaultKey, vaultSecret, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.MakeBucket(t.Context(), "vault", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	b, err := bucket.New(bucket.Config{Endpoint: "http://" + address, Bucket: "vault", Region: "us-east-1", Prefix: "etcd-snapshots", AccessKey: vaultKey, SecretKey: vaultSecret, Kind: files.Etcd})
	if err != nil {
		t.Fatal(err)
	}
	return b, client
}

// gate is a recipient who lets the test do something when a snapshot has begun to come, before any of
// it is written.
type gate struct {
	age.Recipient
	mu     sync.Mutex
	during func()
}

func (g *gate) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	g.mu.Lock()
	during := g.during
	g.during = nil
	g.mu.Unlock()
	if during != nil {
		during()
	}
	return g.Recipient.Wrap(fileKey)
}

func (g *gate) next(during func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.during = during
}

// samples are how many writes were acknowledged, and when.
type samples struct {
	mu  sync.Mutex
	all []sample
}

type sample struct {
	at time.Time
	n  int
}

func (s *samples) watch(ctx context.Context, w *writer) {
	for ctx.Err() == nil {
		n := w.count()
		s.mu.Lock()
		s.all = append(s.all, sample{time.Now(), n})
		s.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
}

// before is how many were acknowledged before a time at least.
func (s *samples) before(at time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		// A sample is taken after the count.
		if one.at.Before(at) {
			n = one.n
		}
	}
	return n
}

func (r *rack) snapshots() []*api.EtcdSnapshotView {
	r.t.Helper()
	resp, err := r.op.ListEtcdSnapshots(r.t.Context(), connect.NewRequest(&api.ListEtcdSnapshotsRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetSnapshots()
}

// another waits for a snapshot that is begun after now, is checked and is in the bucket.
func (r *rack) another(what string) *api.EtcdSnapshotView {
	r.t.Helper()
	from := time.Now()
	var got *api.EtcdSnapshotView
	r.wait(10*time.Minute, what, func() (bool, string) {
		all := r.snapshots()
		if len(all) == 0 {
			return false, "there is none"
		}
		got = all[0]
		return got.GetAt().AsTime().After(from) && got.GetInBucket() && got.GetCheckedAt() != nil, got.GetName() + " of " + got.GetMachine()
	})
	return got
}

// audited counts the entries of an action in the server's log.
func (r *rack) audited(action string) (n int) {
	r.t.Helper()
	for line, err := range r.store.AuditLines(r.t.Context()) {
		if err != nil {
			r.t.Fatal(err)
		}
		if bytes.Contains(line, []byte(`"`+action+`"`)) {
			n++
		}
	}
	return n
}

// Three control planes under a steady writer are saved every ten seconds. Whose snapshot it is loses
// power in the middle, and then etcd's leader does. Then all disks are gone, and etcd begins anew out
// of the last one in the bucket: whatever was acknowledged before it was begun is there.
func TestDrillsScheduledSnapshots(t *testing.T) {
	place, s3 := vault(t)
	recovery, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Recipient: recovery.Recipient()}
	dir := t.TempDir()
	r := darkRack(t, func(c *serverapi.Config) {
		c.EtcdSnapshots = &etcdsnap.Config{Plan: etcdsnap.Plan{Every: 10 * time.Second, Keep: 4}, Dir: dir, Scratch: t.TempDir(), Recipients: []age.Recipient{g}, Copies: place, Stall: 20 * time.Second, Inspect: etcdsnap.Inspect}
	}, "cp1", "cp2", "cp3")
	for i, name := range []string{"cp1", "cp2", "cp3"} {
		r.power(name, i+1)
	}
	r.approve()
	r.ready(30*time.Minute, func(map[string]*api.MachineView) {})
	r.voters(3)
	r.threeAPIServers()

	w := r.write()
	var seen samples
	watching, stop := context.WithCancel(t.Context())
	defer stop()
	go seen.watch(watching, w)
	// A database that does not fit into what lies between a member and the server.
	w.pad(256 << 10)
	w.more(300)
	w.pad(0)
	first := r.another("a snapshot")
	t.Logf("%s of %s: revision %d, %d MiB, file %d MiB", first.GetName(), first.GetMachine(), first.GetRevision(), first.GetSnapshot().GetSize()>>20, first.GetFileBytes()>>20)

	leads := func() string {
		var name string
		r.wait(5*time.Minute, "etcd's leader", func() (bool, string) {
			for _, m := range r.memberList() {
				if m.Leader {
					name = m.Name
				}
			}
			return name != "", name
		})
		return name
	}
	if l := leads(); first.GetMachine() == l {
		t.Errorf("it is of the leader %s", l)
	}
	// kill takes power from whom which names, while a snapshot comes.
	veth := 7
	kill := func(what string, which func(saving string) string) {
		t.Helper()
		failed, killed := r.audited("etcd-snapshot-failed"), make(chan string, 1)
		g.next(func() {
			name := which(r.saving())
			if err := syscall.Kill(r.nodes[name].pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			killed <- name
		})
		name := <-killed
		began := time.Now()
		r.nodes[name].waited()
		next := r.another(what + ": the next snapshot")
		t.Logf("%s: %s lost power; %d attempts failed; the next good one, of %s, was there %.1f s later", what, name, r.audited("etcd-snapshot-failed")-failed, next.GetMachine(), time.Since(began).Seconds())
		r.nodes[name].Installed = true
		r.power(name, veth)
		veth++
		r.wait(5*time.Minute, name+"'s own disk", func() (bool, string) {
			_, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", r.nodes[name].pid, etcd.ClientPath))
			return err == nil, ""
		})
		r.voters(3)
	}
	kill("whose snapshot it is", func(saving string) string { return saving })
	if n := r.audited("etcd-snapshot-failed"); n == 0 {
		t.Error("the member died in the middle of its snapshot, and no attempt has failed")
	}
	leader := leads()
	kill("etcd's leader", func(string) string { return leader })

	w.more(100)
	last := r.another("the last snapshot")
	g.next(func() { <-t.Context().Done() }) // no other one
	w.stop()
	stop()
	before := seen.before(last.GetAt().AsTime())
	acked := w.soFar()[:before]
	if before < 400 {
		t.Fatalf("only %d writes were acknowledged before the last snapshot", before)
	}
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		r.nodes[name].off(t)
	}
	off := time.Now()

	// Nothing of ours is asked what is in the bucket's file.
	work := t.TempDir()
	sealed, plain, key := filepath.Join(work, "sealed"), filepath.Join(work, "etcd.db"), filepath.Join(work, "key")
	if err := s3.FGetObject(t.Context(), "vault", "etcd-snapshots/"+last.GetName(), sealed, minio.GetObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte(recovery.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "age", "-d", "-i", key, "-o", plain, sealed)
	var status struct {
		Revision int64 `json:"revision"`
		TotalKey int   `json:"totalKey"`
	}
	if out := run(t, filepath.Join(r.bin, "etcdutl"), "snapshot", "status", plain, "--write-out", "json"); json.Unmarshal([]byte(out), &status) != nil || status.Revision < last.GetRevision() || last.GetRevision() == 0 {
		t.Errorf("etcdutl says %s, and the manifest revision %d", out, last.GetRevision())
	}
	snapshot, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(snapshot)
	from := &api.EtcdSnapshot{Sha256: hex.EncodeToString(sum[:]), Size: uint64(len(snapshot))}
	if from.GetSha256() != last.GetSnapshot().GetSha256() {
		t.Errorf("its SHA-256 is %s, the server says %s", from.GetSha256(), last.GetSnapshot().GetSha256())
	}
	if err := os.WriteFile(plain+".cut", snapshot[:len(snapshot)-4096], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(r.bin, "etcdutl"), "snapshot", "restore", plain+".cut", "--data-dir", filepath.Join(work, "cut")).CombinedOutput(); err == nil {
		t.Errorf("the judge takes one that is cut off: %s", out)
	}

	r.wait(10*time.Minute, "the server to let etcd begin anew", func() (bool, string) {
		resp, err := r.op.RestoreEtcd(t.Context(), connect.NewRequest(&api.RestoreEtcdRequest{Machine: "cp1", Lost: []string{"cp2", "cp3"}, Reason: "drill", Snapshot: from}))
		if err != nil {
			return false, err.Error()
		}
		return resp.Msg.GetOutcome().GetOk(), resp.Msg.GetOutcome().GetMessage()
	})
	asked := time.Now()
	if o := r.armAgain("cp1"); !o.GetOk() {
		t.Fatal(o)
	}
	r.anew("cp1", veth)
	r.wait(10*time.Minute, "cp1 to take the snapshot", func() (bool, string) {
		err := r.hand("cp1", snapshot, from)
		return err == nil, fmt.Sprint(err)
	})
	var have []string
	r.wait(15*time.Minute, "etcd", func() (bool, string) {
		out, err := r.nodes["cp1"].on("etcdctl", "--endpoints", etcd.LocalEndpoint, "--cacert", etcd.CAPath, "--cert", etcd.ClientPath, "--key", etcd.ClientPath, "get", "drill/", "--prefix", "--keys-only")
		if err != nil {
			return false, err.Error()
		}
		have = strings.Fields(out)
		return true, fmt.Sprintf("%d keys", len(have))
	})
	r.wait(15*time.Minute, "Kubernetes", func() (bool, string) {
		out, err := r.kubectl("cp1", "create", "configmap", "after-the-fire")
		return err == nil, fmt.Sprint(out, err)
	})
	t.Logf("no disk is left: Kubernetes takes writes %.1f s after the command, which was taken %.0f s after power was lost", time.Since(asked).Seconds(), asked.Sub(off).Seconds())
	lost := 0
	for _, k := range acked {
		if !slices.Contains(have, k) {
			lost++
		}
	}
	t.Logf("%d writes were acknowledged before the last snapshot was begun, %d of them are lost; etcd has %d", len(acked), lost, len(have))
	if lost > 0 {
		t.Errorf("%d acknowledged writes are lost", lost)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 2*5 {
		t.Errorf("%d files are kept: %v", len(entries), err)
	}
}

// saving is whose snapshot is taken now.
func (r *rack) saving() string {
	r.t.Helper()
	resp, err := r.op.Status(context.Background(), connect.NewRequest(&api.StatusRequest{}))
	if err != nil {
		r.t.Error(err)
		return ""
	}
	_, rest, _ := strings.Cut(resp.Msg.GetEtcd().GetSummary(), "; a snapshot of ")
	name, _, _ := strings.Cut(rest, " ")
	return name
}
