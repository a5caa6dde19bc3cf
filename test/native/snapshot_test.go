//go:build root

package native

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

// through calls a node by way of the server.
type through string

func (n through) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }
func (n through) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		c := next(ctx, spec)
		c.RequestHeader().Set(nodeapi.HeaderNode, string(n))
		return c
	}
}
func (n through) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (r *rack) byServer(name string) apiconnect.NodeServiceClient {
	return apiconnect.NewNodeServiceClient(r.http, serverURL, connect.WithInterceptors(through(name)))
}

// snapshot takes one of a node's member, through the server.
func (r *rack) snapshot(name string) []byte {
	r.t.Helper()
	s, err := r.byServer(name).EtcdSnapshot(r.t.Context(), connect.NewRequest(&api.EtcdSnapshotRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Close()
	var out []byte
	for s.Receive() {
		out = append(out, s.Msg().GetChunk()...)
	}
	if err := s.Err(); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// hand sends a snapshot to a node, through the server.
func (r *rack) hand(name string, snapshot []byte, from *api.EtcdSnapshot) error {
	s := r.byServer(name).PutEtcdSnapshot(r.t.Context())
	err := s.Send(&api.PutEtcdSnapshotRequest{Sha256: from.GetSha256()})
	for rest := snapshot; len(rest) > 0 && err == nil; rest = rest[min(len(rest), 48<<10):] {
		err = s.Send(&api.PutEtcdSnapshotRequest{Chunk: rest[:min(len(rest), 48<<10)]})
	}
	_, err = s.CloseAndReceive()
	return err
}

// keys are those of a prefix that etcd has.
func (r *rack) keys(c *clientv3.Client, prefix string) int64 {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	resp, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Count
}

// compacted asks for what happened since a revision, as one does who watched then.
func (r *rack) compacted(c *clientv3.Client, since int64) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	for resp := range c.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(since)) {
		if !errors.Is(resp.Err(), rpctypes.ErrCompacted) || resp.CompactRevision <= since {
			r.t.Errorf("who watches since revision %d is told %v, compacted up to %d", since, resp.Err(), resp.CompactRevision)
		}
		r.t.Logf("who watches since revision %d is told that it is compacted up to %d", since, resp.CompactRevision)
		return
	}
	r.t.Errorf("who watches since revision %d is told nothing", since)
}

func (r *rack) kubectl(name string, args ...string) (string, error) {
	return r.nodes[name].on(append([]string{"kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "--request-timeout", "20s"}, args...)...)
}

// restored checks what etcd and Kubernetes have after one of the restores.
func (r *rack) restored(what string, since int64, version string) {
	r.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: r.endpoints(), TLS: r.nodes["cp1"].certificate(r.t)})
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	if before, after := r.keys(c, "drill/before/"), r.keys(c, "drill/after/"); before != 100 || after != 0 {
		r.t.Errorf("%s: %d keys of 100 of the snapshot, and %d of after it", what, before, after)
	}
	r.compacted(c, since)
	if out, err := r.kubectl("cp1", "get", "configmap", "orders", "--namespace", "shop", "-o", "jsonpath={.data.n}"); err != nil || out != "42" {
		r.t.Errorf("%s: what the deleted namespace had: %v %s", what, err, out)
	}
	if out, err := r.kubectl("cp1", "get", "configmap", "later", "--namespace", "default"); err == nil {
		r.t.Errorf("%s: what was made after the snapshot is there: %s", what, out)
	}
	out, err := r.kubectl("cp1", "get", "--raw", "/api/v1/configmaps?watch=1&timeoutSeconds=10&resourceVersion="+version)
	if !strings.Contains(out, "410") && (err == nil || !strings.Contains(err.Error(), "too old") && !strings.Contains(err.Error(), "Expired")) {
		r.t.Errorf("%s: who watches ConfigMaps since %s is told %v %.300s", what, version, err, out)
	} else {
		r.t.Logf("%s: who watches ConfigMaps since %s is told %.200s", what, version, strings.TrimSpace(out))
	}
	// Informers are at work: the controller-manager makes this of every namespace.
	name := strings.ReplaceAll(what, " ", "-")
	r.wait(5*time.Minute, what+": a namespace", func() (bool, string) {
		if out, err := r.kubectl("cp1", "create", "namespace", name); err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
			return false, out
		}
		out, err := r.kubectl("cp1", "get", "--namespace", name, "serviceaccount", "default")
		return err == nil, out
	})
}

// Three control planes. A namespace is deleted, and etcd begins anew out of a snapshot of before,
// although all three are well. One of them forgets what it has and joins again. Then all disks are gone, and it begins anew on an empty machine, with
// another snapshot; the others come back empty.
func TestDrillsOutOfASnapshot(t *testing.T) {
	r := newRack(t, "cp1", "cp2", "cp3")
	r.approve()
	r.ready(30*time.Minute, func(map[string]*api.MachineView) {})
	r.voters(3)
	r.threeAPIServers()

	c, err := clientv3.New(clientv3.Config{Endpoints: r.endpoints(), TLS: r.nodes["cp1"].certificate(t)})
	if err != nil {
		t.Fatal(err)
	}
	put := func(prefix string) (revision int64) {
		t.Helper()
		for i := range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			resp, err := c.Put(ctx, fmt.Sprintf("%s%03d", prefix, i), "x")
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			revision = resp.Header.Revision
		}
		return revision
	}
	say := func(args ...string) string {
		t.Helper()
		out, err := r.kubectl("cp1", args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	say("create", "namespace", "shop")
	say("create", "configmap", "orders", "--namespace", "shop", "--from-literal", "n=42")
	put("drill/before/")
	snapshot := r.snapshot("cp2")
	sum := sha256.Sum256(snapshot)
	from := &api.EtcdSnapshot{Sha256: hex.EncodeToString(sum[:]), Size: uint64(len(snapshot))}
	if tail := sha256.Sum256(snapshot[:len(snapshot)-sha256.Size]); !bytes.HasSuffix(snapshot, tail[:]) {
		t.Fatal("the snapshot's own digest does not fit")
	}
	since := put("drill/after/")
	say("create", "configmap", "later", "--namespace", "default")
	say("delete", "namespace", "shop")
	listed := func() string {
		t.Helper()
		var list struct {
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
			} `json:"metadata"`
		}
		if err := json.Unmarshal([]byte(say("get", "--raw", "/api/v1/configmaps?limit=1")), &list); err != nil || list.Metadata.ResourceVersion == "" {
			t.Fatalf("listing ConfigMaps: %v, version %q", err, list.Metadata.ResourceVersion)
		}
		return list.Metadata.ResourceVersion
	}
	version := listed()
	_ = c.Close()

	restore := func(giveUp bool) *api.Outcome {
		t.Helper()
		resp, err := r.op.RestoreEtcd(t.Context(), connect.NewRequest(&api.RestoreEtcdRequest{Machine: "cp1", Lost: []string{"cp2", "cp3"}, Reason: "drill", Snapshot: from, GiveUpData: giveUp}))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg.GetOutcome()
	}
	if err := r.hand("cp1", snapshot, from); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("cp1 takes a snapshot that nobody told it of: %v", err)
	}
	if o := restore(false); o.GetReasonCode() != "etcd-not-lost" {
		t.Fatalf("while all are well: %v", o)
	}
	began := time.Now()
	if o := restore(true); !o.GetOk() {
		t.Fatal(o)
	}
	handed := func() {
		t.Helper()
		r.wait(10*time.Minute, "cp1 to take the snapshot", func() (bool, string) {
			err := r.hand("cp1", snapshot, from)
			return err == nil, fmt.Sprint(err)
		})
	}
	handed()
	r.wait(5*time.Minute, "Kubernetes", func() (bool, string) {
		out, err := r.kubectl("cp1", "create", "configmap", "after-the-restore", "--namespace", "shop")
		return err == nil, fmt.Sprint(out, err)
	})
	t.Logf("all well, a namespace deleted: Kubernetes takes writes %.1f s after the command, out of %d KiB", time.Since(began).Seconds(), len(snapshot)>>10)
	r.voters(3)
	r.ready(20*time.Minute, func(map[string]*api.MachineView) {})
	r.threeAPIServers()
	t.Logf("three voters and API servers again %.1f s after the command", time.Since(began).Seconds())
	r.restored("all were well", since, version)
	r.emptied("cp2")
	// Who has seen the etcd of now is to hear of the next one too.
	second := listed()

	for _, name := range []string{"cp1", "cp2", "cp3"} {
		r.nodes[name].off(t)
	}
	off := time.Now()
	// The server believes for two minutes what they said last.
	r.wait(10*time.Minute, "the server to let etcd begin anew", func() (bool, string) {
		o := restore(false)
		return o.GetOk(), o.GetMessage()
	})
	asked := time.Now()
	if o := r.armAgain("cp1"); !o.GetOk() {
		t.Fatal(o)
	}
	r.anew("cp1", 7)
	handed()
	r.wait(15*time.Minute, "Kubernetes", func() (bool, string) {
		out, err := r.kubectl("cp1", "create", "configmap", "after-the-fire", "--namespace", "shop")
		return err == nil, fmt.Sprint(out, err)
	})
	t.Logf("no disk is left: Kubernetes takes writes %.1f s after the command, which was taken %.0f s after power was lost; with installing and approving the machine", time.Since(asked).Seconds(), asked.Sub(off).Seconds())
	for i, name := range []string{"cp2", "cp3"} {
		r.wait(5*time.Minute, name+" to be armed", func() (bool, string) {
			o := r.armAgain(name)
			return o.GetOk(), o.GetMessage()
		})
		r.anew(name, 8+i)
	}
	r.voters(3)
	r.ready(20*time.Minute, func(map[string]*api.MachineView) {})
	r.threeAPIServers()
	t.Logf("three voters and API servers again %.1f s after the command", time.Since(asked).Seconds())
	seen, err := strconv.ParseInt(second, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	r.restored("no disk was left", seen, second)
}

// emptied has a control plane forget etcd and Kubernetes: it comes back as another member and another
// Node object, and is the same machine with the same system.
func (r *rack) emptied(name string) {
	r.t.Helper()
	member := func() string {
		for _, e := range r.memberList() {
			if e.Name == name {
				return strconv.FormatUint(e.ID, 16)
			}
		}
		return ""
	}
	object := func() string {
		out, err := r.kubectl("cp1", "get", "node", name, "-o", "jsonpath={.metadata.uid}")
		if err != nil {
			return ""
		}
		return out
	}
	system := func() string {
		out, err := r.nodes[name].on("sha256sum", "/var/lib/imagectl/agent.key", "/etc/imagectl/node.json")
		if err != nil {
			r.t.Fatal(err)
		}
		return out
	}
	var was [2]string
	r.wait(time.Minute, name+"'s member and Node object", func() (bool, string) {
		was = [2]string{member(), object()}
		return was[0] != "" && was[1] != "", fmt.Sprint(was)
	})
	before, began := system(), time.Now()
	r.wait(5*time.Minute, name+" to be told", func() (bool, string) {
		resp, err := r.op.ActMachine(r.t.Context(), connect.NewRequest(&api.ActMachineRequest{Selection: &api.Selection{Names: []string{name}}, Action: api.ActMachineRequest_ACTION_RESET_KEEP, Reason: "drill"}))
		if err != nil {
			return false, err.Error()
		}
		return resp.Msg.GetOutcomes()[0].GetOk(), resp.Msg.GetOutcomes()[0].GetMessage()
	})
	r.wait(15*time.Minute, name+" as another member and another Node object", func() (bool, string) {
		now := [2]string{member(), object()}
		return now[0] != "" && now[1] != "" && now[0] != was[0] && now[1] != was[1], fmt.Sprint(now, " was ", was)
	})
	r.voters(3)
	r.ready(20*time.Minute, func(map[string]*api.MachineView) {})
	r.threeAPIServers()
	if after := system(); after != before {
		r.t.Errorf("%s is another machine: %s, was %s", name, after, before)
	}
	r.t.Logf("%s forgot etcd and Kubernetes, and is a voter and Ready again %.1f s after it was told to", name, time.Since(began).Seconds())
}
