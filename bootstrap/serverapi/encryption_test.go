package serverapi

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// serving is what a control plane of a working cluster says.
func serving(keys ...string) *api.SyncRequest {
	return &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{Running: true, Healthy: true, MemberId: "1"},
		Kubernetes: &api.KubernetesObserved{Joined: true, ApiserverReady: true, NodeReady: true, EncryptionLoaded: keys}}
}

func (r *rig) rotate() *api.RotateEncryptionResponse {
	r.t.Helper()
	resp, err := r.operator(pki.RoleAdmin).RotateEncryption(r.t.Context(), connect.NewRequest(&api.RotateEncryptionRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg
}

func (r *rig) encryption() *api.EncryptionView {
	r.t.Helper()
	resp, err := r.operator(pki.RoleReader).ShowEncryption(r.t.Context(), connect.NewRequest(&api.ShowEncryptionRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetEncryption()
}

func (f *fake) keys() []*api.EncryptionKey {
	f.t.Helper()
	got, err := f.agent().FetchKubernetesSecrets(f.t.Context(), connect.NewRequest(&api.FetchKubernetesSecretsRequest{Encryption: true}))
	if err != nil {
		f.t.Fatal(err)
	}
	return got.Msg.GetEncryptionKeys()
}

func namesOf(keys []*api.EncryptionKey) []string {
	var out []string
	for _, k := range keys {
		out = append(out, k.GetName())
	}
	return out
}

// A key is replaced in Kubernetes' four steps, each when the control plane has done the one
// before, and over restarts of the server.
func TestTheKeyForSecretsIsReplacedStepByStep(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	r := start(t, cfg)
	admin := r.operator(pki.RoleAdmin)
	if _, err := admin.RotateEncryption(t.Context(), connect.NewRequest(&api.RotateEncryptionRequest{})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("before there is a cluster: %v", err)
	}
	cp := r.member("cp1", "52:54:00:00:00:01")
	k := cp.sync(serving()).GetRun().GetKubernetes()
	if p := k.GetPolicy(); p.GetEnforce() != "baseline" || p.GetWarn() != "restricted" || p.GetAudit() != "restricted" {
		t.Errorf("the policy is %v", p)
	}
	first := k.GetEncryptionKeys()
	if len(first) != 1 || !strings.HasPrefix(first[0], "k-") || r.encryption().GetStage() != "settled" {
		t.Fatalf("a new cluster has keys %v: %v", first, r.encryption())
	}
	was := cp.keys()
	if len(was) != 1 || was[0].GetName() != first[0] || len(was[0].GetSecret()) != 32 {
		t.Fatalf("it is given %v", namesOf(was))
	}
	// The worker gets none, and an agent that asks for none neither.
	w := r.member("w1", "52:54:00:00:00:02")
	if _, err := w.agent().FetchKubernetesSecrets(t.Context(), connect.NewRequest(&api.FetchKubernetesSecretsRequest{Encryption: true})); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a worker: %v", err)
	}
	if got := w.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE}).GetRun().GetKubernetes(); len(got.GetEncryptionKeys()) > 0 || got.GetPolicy() != nil {
		t.Errorf("a worker is told of keys: %v", got)
	}
	if got, err := cp.agent().FetchKubernetesSecrets(t.Context(), connect.NewRequest(&api.FetchKubernetesSecretsRequest{})); err != nil || len(got.Msg.GetEncryptionKeys()) > 0 {
		t.Errorf("an agent that does not ask: %v, %v", err, got)
	}
	cp.sync(serving(first...))

	resp := r.rotate()
	if !resp.GetChanged() {
		t.Fatal(resp)
	}
	if again := r.rotate(); again.GetChanged() || !strings.HasPrefix(again.GetMessage(), "nothing to do: the key is being replaced by k-") {
		t.Error(again)
	}
	want := func(when, stage string, rewrite bool, said *api.SyncRequest, keys ...string) {
		t.Helper()
		got := cp.sync(said).GetRun().GetKubernetes()
		if !slices.Equal(got.GetEncryptionKeys(), keys) || got.GetEncryptionRewrite() != rewrite {
			t.Errorf("%s: keys %v, rewrite %v, want %v, %v", when, got.GetEncryptionKeys(), got.GetEncryptionRewrite(), keys, rewrite)
		}
		if fetched := namesOf(cp.keys()); !slices.Equal(fetched, keys) {
			t.Errorf("%s: it is given %v", when, fetched)
		}
		if at := r.encryption().GetStage(); at != stage {
			t.Errorf("%s: it is %s, want %s", when, at, stage)
		}
	}
	k1, k2 := first[0], resp.GetEncryption().GetKeys()[1]
	want("nothing is done yet", "adding", false, serving(k1), k1, k2)
	r.restart(cfg)
	want("after a restart", "adding", false, serving(k1), k1, k2)
	if notes := r.allNotes(); !strings.Contains(notes, "the key for Secrets in etcd is being replaced by "+k2+": API servers learn to read with it\nthat waits: cp1 has not said that its API server has loaded the keys "+k1+", "+k2) {
		t.Errorf("status says %s", notes)
	}
	want("it can read with the new one", "writing", false, serving(k1, k2), k2, k1)
	want("it writes with the new one", "rewriting", true, serving(k2, k1), k2, k1)
	r.restart(cfg)
	want("nothing is written anew yet", "rewriting", true, serving(k2, k1), k2, k1)
	done := serving(k2, k1)
	done.Kubernetes.EncryptionRewritten = k2
	want("all is written anew", "settled", false, done, k2)
	if now := cp.keys(); bytes.Equal(now[0].GetSecret(), was[0].GetSecret()) {
		t.Error("the new key is the old one")
	}
	if got := len(r.audited("encryption-key-rotated")); got != 1 {
		t.Errorf("the log has %d entries", got)
	}
	// A snapshot from before is restored: the key of then, and Secrets that were never encrypted.
	if former := r.encryption().GetFormer(); len(former) != 1 || former[0].GetName() != k1 || former[0].GetMadeAt() == nil {
		t.Errorf("former keys are %v", former)
	}
	recall := func(names ...string) (*connect.Response[api.RotateEncryptionResponse], error) {
		return r.operator(pki.RoleAdmin).RotateEncryption(t.Context(), connect.NewRequest(&api.RotateEncryptionRequest{AlsoRead: names}))
	}
	if _, err := recall("k-00000000"); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), `there is no key "k-00000000"`) {
		t.Errorf("a key that there never was: %v", err)
	}
	again, err := recall(k1, k2, "identity", k1)
	if err != nil {
		t.Fatal(err)
	}
	k3 := again.Msg.GetEncryption().GetKeys()[1]
	if _, err := recall(k1); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("while one is under way: %v", err)
	}
	want("nothing is done again", "adding", false, serving(k2), k2, k3, k1, "identity")
	want("it reads with all", "writing", false, serving(k2, k3, k1, "identity"), k3, k2, k1, "identity")
	want("it writes with the third", "rewriting", true, serving(k3, k2, k1, "identity"), k3, k2, k1, "identity")
	done.Kubernetes.EncryptionRewritten = k3
	want("all is written anew again", "settled", false, done, k3)
	if got := len(r.audited("encryption-key-rotated")); got != 2 {
		t.Errorf("the log has %d entries", got)
	}
	// No key is in the log, nor anywhere in the store as it is.
	secret := cp.keys()[0].GetSecret()
	for line, err := range r.store.AuditLines(t.Context()) {
		if err != nil || bytes.Contains(line, secret) {
			t.Error("the key is in the audit log", err)
		}
	}
	for record, err := range r.store.Records(t.Context()) {
		if err != nil || bytes.Contains(record.Value, secret) {
			t.Errorf("the key is in record %s: %v", record.Key, err)
		}
	}
}

// A cluster from before is told so, and encryption begins with what is there being readable.
func TestEncryptionIsTurnedOnForAClusterFromBefore(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	r := start(t, cfg)
	cp := r.member("cp1", "52:54:00:00:00:01")
	if err := r.change(t.Context(), audit.Actor{}, func(c *change) error {
		return c.tx.PutValue(valueChoices, coordinator.Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1"}})
	}); err != nil {
		t.Fatal(err)
	}
	r.restart(cfg)
	if k := cp.sync(serving()).GetRun().GetKubernetes(); len(k.GetEncryptionKeys()) > 0 || k.GetPolicy() != nil || len(cp.keys()) > 0 {
		t.Errorf("it is told of %v", k)
	}
	if v := r.encryption(); v.GetStage() != "off" {
		t.Error(v)
	}
	if notes := r.allNotes(); !strings.Contains(notes, "warning: Secrets are not encrypted in etcd") {
		t.Error(notes)
	}
	if resp := r.rotate(); !resp.GetChanged() {
		t.Fatal(resp)
	}
	k := cp.sync(serving()).GetRun().GetKubernetes()
	if got := k.GetEncryptionKeys(); len(got) != 2 || got[0] != coordinator.PlainKey || k.GetPolicy() == nil || k.GetRenewBefore() != nil {
		t.Errorf("it is told of %v", k)
	}
	if got := cp.keys(); len(got) != 2 || len(got[0].GetSecret()) != 0 || len(got[1].GetSecret()) != 32 {
		t.Errorf("it is given %v", namesOf(got))
	}
	// Its API server has to be started anew for that, when it is its turn.
	old := serving()
	old.Kubernetes.ApiServerOutdated = true
	if k := cp.sync(old).GetRun().GetKubernetes(); k.GetRenewBefore() == nil {
		t.Error("it has no turn to start its API server anew")
	}
	if notes := r.allNotes(); !strings.Contains(notes, "cp1 starts its API server anew, with the policy of now") {
		t.Error(notes)
	}
	if k := cp.sync(serving(k.GetEncryptionKeys()...)).GetRun().GetKubernetes(); k.GetRenewBefore() != nil || k.GetEncryptionKeys()[0] == coordinator.PlainKey {
		t.Errorf("after that: %v", k)
	}
}

// Secrets are not written with a key that the newest backup does not have.
func TestANewKeyWaitsForABackup(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	kept := r.keepCopies(time.Now)
	r.restart(r.cfg)
	cp := r.member("cp1", "52:54:00:00:00:01")
	cp.sync(serving())
	if _, err := kept.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	resp := r.rotate()
	keys := resp.GetEncryption().GetKeys()
	if k := cp.sync(serving(keys...)).GetRun().GetKubernetes(); !slices.Equal(k.GetEncryptionKeys(), keys) {
		t.Errorf("it went on without a backup: %v", k.GetEncryptionKeys())
	}
	if waits := strings.Join(r.encryption().GetWaits(), "; "); !strings.HasPrefix(waits, "no backup was made since ") {
		t.Errorf("it waits for %s", waits)
	}
	if _, err := kept.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if k := cp.sync(serving(keys...)).GetRun().GetKubernetes(); slices.Equal(k.GetEncryptionKeys(), keys) {
		t.Errorf("it waits still: %v", r.encryption())
	}
}

// A server out of a backup from before a key gives nobody the old one, and says what is wrong.
func TestAServerFromBeforeTheKeyGivesNoOther(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	cp := r.member("cp1", "52:54:00:00:00:01")
	cp.sync(serving())
	cp.sync(serving("k-0badcafe"))
	const want = "Secrets are encrypted with a key that this server does not know, k-0badcafe (cp1): it was restored from a backup that is older than the key; restore a newer one"
	if notes := r.allNotes(); !strings.Contains(notes, "alarm: "+want) {
		t.Error(notes)
	}
	_, err := cp.agent().FetchKubernetesSecrets(t.Context(), connect.NewRequest(&api.FetchKubernetesSecretsRequest{Encryption: true}))
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), want) {
		t.Errorf("fetching: %v", err)
	}
	if _, err := r.operator(pki.RoleAdmin).RotateEncryption(t.Context(), connect.NewRequest(&api.RotateEncryptionRequest{})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("rotating: %v", err)
	}
}

// An API server that cluster.yaml does not list any more has its keys still.
func TestARotationWaitsForAnAPIServerThatIsNotListed(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	if err := r.change(t.Context(), audit.Actor{}, func(c *change) error {
		return c.tx.PutMachine(store.Machine{Name: "old", State: "ready", Since: c.now})
	}); err != nil {
		t.Fatal(err)
	}
	c := coordinator.Choices{APIServers: []string{"cp1", "old"}, Encryption: coordinator.Encryption{Stage: coordinator.EncryptionAdding, Keys: []string{"k-1", r.newestKey()}}}
	const want = "old is not in cluster.yaml any more, and its API server has the keys of before: imagectl machines retire old"
	if got := r.encryptionHolds(c); !slices.Equal(got, []string{want}) {
		t.Errorf("got %v", got)
	}
	if err := r.change(t.Context(), audit.Actor{}, func(c *change) error {
		return c.tx.PutMachine(store.Machine{Name: "old", State: "retired", Since: c.now})
	}); err != nil {
		t.Fatal(err)
	}
	if got := r.encryptionHolds(c); len(got) > 0 {
		t.Errorf("got %v", got)
	}
}
