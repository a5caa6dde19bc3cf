package serverapi

import (
	"bytes"
	"context"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func installer() *api.SyncRequest { return &api.SyncRequest{Mode: api.Mode_MODE_INSTALLER} }

// install takes an approved, armed machine through its installation.
func (f *fake) install() {
	f.t.Helper()
	d := f.sync(installer())
	if d.GetInstall() == nil {
		f.t.Fatalf("%s: want an Install directive, got %v", f.mac, d)
	}
	done := installer()
	done.Installed = true
	if d := f.sync(done); d.GetReboot() == nil {
		f.t.Fatalf("%s: want a Reboot directive, got %v", f.mac, d)
	}
}

// The main job on loopback: from an unknown key to a Ready control plane and
// worker, with a restart of the server in between.
func TestFromFirstKeyToReady(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	r := start(t, cfg)
	f := r.machine("52:54:00:00:00:01")

	first := f.enrol()
	if first.GetStatus() != api.EnrolResponse_STATUS_PENDING || first.GetReasonCode() != "enrol-pending" || first.GetRetryAfterMs() == 0 {
		t.Fatalf("first answer: %v", first)
	}
	if o := r.approve("cp1", "0000-0000-0000", false); o.GetOk() || o.GetReasonCode() != "code-mismatch" {
		t.Errorf("a wrong code: %v", o)
	}
	if o := r.approve("cp1", f.console(), false); !o.GetOk() {
		t.Fatalf("the console's code: %v", o)
	}
	if o := r.approve("cp1", f.console(), false); !o.GetOk() {
		t.Errorf("approving again, after a lost reply: %v", o)
	}
	approved := f.enrol()
	if approved.GetStatus() != api.EnrolResponse_STATUS_APPROVED || approved.GetMachine() != "cp1" {
		t.Fatalf("after approval: %v", approved)
	}
	if again := f.enrol(); again.GetCertificatePem() != approved.GetCertificatePem() {
		t.Error("the same key asks again and gets another certificate")
	}

	// Arming wakes the machine that waits.
	d := f.sync(installer())
	if d.GetWait().GetReasonCode() != "not-armed" || d.GetRevision() == 0 {
		t.Fatalf("an unarmed machine: %v", d)
	}
	woken := make(chan *api.SyncResponse, 1)
	go func() {
		// It ends with the news or not at all: the server's patience is longer.
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		req := installer()
		req.KnownRevision, req.WaitMs = d.GetRevision(), uint32(time.Hour.Milliseconds())
		resp, err := f.agent().Sync(ctx, connect.NewRequest(req))
		if err != nil {
			t.Error(err)
			close(woken)
			return
		}
		woken <- resp.Msg
	}()
	if o := r.arm("cp1", false); !o.GetOk() || o.GetState() != "armed" {
		t.Fatalf("arming: %v", o)
	}
	install := (<-woken).GetInstall()
	if install == nil {
		t.Fatal("the news is not the order to install")
	}
	if install.GetImageSha256() != cp1().Image.SHA256 || install.GetRawSha256() != cp1().Image.RawSHA256 || install.GetDisk().GetPath() != "/dev/vda" || install.GetArmingId() == "" {
		t.Errorf("install: %v", install)
	}
	if c, err := nodeconf.Parse(install.GetNodeConfig()); err != nil || c.Mode != nodeconf.Node || c.Machine != "cp1" || c.CA != string(r.CAPEM()) {
		t.Errorf("node.json: %+v, %v", c, err)
	}

	// A restart in the middle: the same arming goes on.
	r.restart(cfg)
	if got := f.sync(installer()).GetInstall(); got.GetArmingId() != install.GetArmingId() {
		t.Errorf("after a restart: arming %s, want %s", got.GetArmingId(), install.GetArmingId())
	}
	if _, err := f.agent().ReportInstall(t.Context(), connect.NewRequest(&api.ReportInstallRequest{ArmingId: install.GetArmingId(), BytesDone: 5, BytesTotal: 10})); err != nil {
		t.Error(err)
	}
	f.install()
	if m, _ := r.store.Machine("cp1"); m.State != machine.Installed || m.Arming != nil || m.InstalledAt.IsZero() {
		t.Errorf("after the installation: %+v", m)
	}

	w := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.arm("w1", false)
	w.install()

	// The installed systems.
	node := func() *api.SyncRequest { return &api.SyncRequest{Mode: api.Mode_MODE_NODE} }
	run := f.sync(node()).GetRun()
	if run.GetEtcd().GetAction() != api.EtcdWanted_ACTION_BOOTSTRAP || run.GetEtcd().GetInitialCluster() != "cp1=https://127.0.0.1:2380" ||
		run.GetKubernetes().GetAction() != api.KubernetesWanted_ACTION_WAIT {
		t.Errorf("cp1 first: %v", run)
	}
	if run := w.sync(node()).GetRun(); run.GetEtcd().GetAction() != api.EtcdWanted_ACTION_NONE || run.GetKubernetes().GetReason() != "no control plane has started yet" {
		t.Errorf("w1 first: %v", run)
	}
	healthy := node()
	healthy.Etcd = &api.EtcdObserved{Running: true, Healthy: true, MemberId: "1"}
	run = f.sync(healthy).GetRun()
	if run.GetEtcd().GetAction() != api.EtcdWanted_ACTION_RUN || run.GetKubernetes().GetAction() != api.KubernetesWanted_ACTION_INIT || len(run.GetKubernetes().GetAddons()) != 1 {
		t.Errorf("cp1 with etcd: %v", run)
	}
	if _, err := r.operator(pki.RoleAdmin).IssueKubeconfig(t.Context(), connect.NewRequest(&api.IssueKubeconfigRequest{CsrDer: csr(t, f.key)})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a kubeconfig before there is a cluster: %v", err)
	}

	// Certificates: by role.
	issued, err := f.issue(api.CertificateProfile_CERTIFICATE_PROFILE_NODE, api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_SERVER,
		api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER, api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_APISERVER_CLIENT, api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_AGENT_CLIENT)
	if err != nil || len(issued.GetItems()) != 5 {
		t.Fatalf("cp1's certificates: %v, %v", issued, err)
	}
	if _, err := w.issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a worker asks for an etcd certificate: %v", err)
	}
	if _, err := w.issue(api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_BOOTSTRAP); err != nil {
		t.Errorf("a worker's join certificate: %v", err)
	}
	if _, err := w.issue(api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_SERVING); err != nil {
		t.Errorf("a worker's kubelet: %v", err)
	}
	secrets, err := f.agent().FetchKubernetesSecrets(t.Context(), connect.NewRequest(&api.FetchKubernetesSecretsRequest{}))
	if err != nil || len(secrets.Msg.GetFiles()) != 4 {
		t.Fatalf("secrets: %v", err)
	}
	etcdKey, err := r.etcd.Load().ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range secrets.Msg.GetFiles() {
		block, _ := pem.Decode(file.GetContent())
		if block == nil || bytes.Contains(file.GetContent(), etcdKey) {
			t.Errorf("%s holds no PEM or etcd's CA key", file.GetPath())
		}
		if private := strings.Contains(block.Type, "PRIVATE"); private != (file.GetMode() == 0o600) {
			t.Errorf("%s (%s) has mode %o", file.GetPath(), block.Type, file.GetMode())
		}
	}
	if _, err := w.agent().FetchKubernetesSecrets(t.Context(), connect.NewRequest(&api.FetchKubernetesSecretsRequest{})); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a worker fetches the Kubernetes CA: %v", err)
	}

	// init, join, Ready.
	up := node()
	up.Etcd = healthy.Etcd
	up.Kubernetes = &api.KubernetesObserved{Joined: true, ApiserverReady: true, NodeReady: true, AddonsApplied: true}
	if run := f.sync(up).GetRun(); run.GetKubernetes().GetAction() != api.KubernetesWanted_ACTION_RUN {
		t.Errorf("cp1 after init: %v", run)
	}
	join := w.sync(node())
	if k := join.GetRun().GetKubernetes(); k.GetAction() != api.KubernetesWanted_ACTION_JOIN_WORKER || k.GetApiServers()[0] != "127.0.0.1:6443" {
		t.Errorf("w1 joins: %v", k)
	}
	joined := node()
	joined.Kubernetes = &api.KubernetesObserved{Joined: true, NodeReady: true}
	w.sync(joined)
	status, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
	if err != nil || !status.Msg.GetReady() || status.Msg.GetSummary() != "all 2 nodes are Ready" {
		t.Errorf("status: %v, %v", status, err)
	}
	kc, err := r.operator(pki.RoleAdmin).IssueKubeconfig(t.Context(), connect.NewRequest(&api.IssueKubeconfigRequest{CsrDer: csr(t, f.key)}))
	if err != nil || kc.Msg.GetServer() != "https://k8s.example:6443" {
		t.Errorf("kubeconfig: %v, %v", kc, err)
	}

	// The control plane cannot be wiped by mistake, nor with the word for it.
	if o := r.arm("w1", false); o.GetReasonCode() != "needs-reinstall" {
		t.Errorf("arming a node: %v", o)
	}
	if o := r.arm("cp1", true); o.GetReasonCode() != "would-lose-etcd" {
		t.Errorf("wiping the only etcd: %v", o)
	}

	// Nothing is chosen twice after another restart, and words stay the same.
	before := f.sync(up)
	r.restart(cfg)
	if after := f.sync(up); after.GetRevision() != before.GetRevision() {
		t.Errorf("the directive changed over a restart:\n%v\n%v", before, after)
	}
	checkAudit(t, r)
}

func checkAudit(t *testing.T, r *rig) {
	t.Helper()
	tip, err := r.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	actions := map[string]int{}
	var at audit.Tip
	for line, err := range r.store.AuditLines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var e audit.Entry
		if e, at, err = audit.Open(at, line); err != nil {
			t.Fatal(err)
		}
		actions[e.Action]++
		if e.Actor.Subject == "" {
			t.Errorf("nobody did %+v", e)
		}
	}
	for _, want := range []string{"secret-created", "machine-listed", "enrol-asked", "key-approved", "certificate-issued", "machine-armed",
		"install-begun", "machine-reported", "cluster-choice", "kubernetes-secrets-fetched"} {
		if actions[want] == 0 {
			t.Errorf("the audit log has no %s among %v", want, actions)
		}
	}
	if tip != at {
		t.Errorf("tip %v, last entry %v", tip, at)
	}
}

func TestAnInstallerThatLostItsKey(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.arm("w1", false)
	first := f.sync(installer()).GetInstall()

	// Power fails; it comes back with another key.
	again := r.machine("52:54:00:00:00:02")
	if got := again.enrol(); got.GetReasonCode() != "enrol-key-conflict" || got.GetStatus() != api.EnrolResponse_STATUS_PENDING {
		t.Fatalf("the second key: %v", got)
	}
	list, err := r.operator(pki.RoleReader).ListMachines(t.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if v := list.Msg.GetMachines()[1]; !v.GetKeyConflict() || v.GetPendingCode() != again.console() || v.GetState() != "installing" {
		t.Errorf("the list: %v", v)
	}
	if d := f.sync(installer()); d.GetInstall() == nil {
		t.Errorf("the first key is disturbed: %v", d)
	}
	if o := r.approve("w1", again.console(), false); o.GetReasonCode() != "needs-replace-key" {
		t.Errorf("without the word: %v", o)
	}
	if o := r.approve("w1", again.console(), true); !o.GetOk() {
		t.Fatalf("with the word: %v", o)
	}
	if _, err := f.agent().Sync(t.Context(), connect.NewRequest(installer())); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the replaced key: %v", err)
	}
	again.enrol()
	if got := again.sync(installer()).GetInstall(); got.GetArmingId() != first.GetArmingId() {
		t.Errorf("the new key: %v", got)
	}
	again.install()

	// Somebody else claims a machine that is installed: an alarm, no disturbance.
	thief := r.machine("52:54:00:00:00:02")
	thief.enrol()
	if s := r.store.State("w1"); s != machine.Installed {
		t.Errorf("a second key moved the machine to %s", s)
	}
	if _, err := r.operator(pki.RoleOperator).RejectMachine(t.Context(), connect.NewRequest(&api.RejectMachineRequest{Selection: &api.Selection{All: true}})); err != nil {
		t.Fatal(err)
	}
	if got := thief.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_REJECTED {
		t.Errorf("the rejected key: %v", got)
	}
}

func TestAWarningOfAnInstallationIsKept(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.arm("w1", false)
	f.sync(installer())
	done := installer()
	done.Installed = true
	done.Steps = []*api.StepStatus{
		{Name: "install", State: api.StepStatus_STATE_DONE},
		{Name: "boot-order", State: api.StepStatus_STATE_FAILED, Detail: "the firmware refuses"},
	}
	if d := f.sync(done); d.GetReboot() == nil {
		t.Errorf("want a Reboot directive, got %v", d)
	}
	if m, _ := r.store.Machine("w1"); m.State != machine.Installed || m.Reason != "boot-order: the firmware refuses" {
		t.Errorf("got %s, %q", m.State, m.Reason)
	}
}

func TestFailureAndSecondAttempt(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.arm("w1", false)
	first := f.sync(installer()).GetInstall()
	failed := installer()
	failed.Failure = "no disk matches"
	if d := f.sync(failed); d.GetWait().GetReasonCode() != "failed" {
		t.Fatalf("after a failure: %v", d)
	}
	if m, _ := r.store.Machine("w1"); m.State != machine.Failed || m.Reason != "no disk matches" {
		t.Errorf("the record: %+v", m)
	}
	if o := r.arm("w1", false); !o.GetOk() {
		t.Fatalf("arming again: %v", o)
	}
	// It still tells of its failure when the new directive reaches it.
	if d := f.sync(failed).GetInstall(); d == nil || d.GetArmingId() == first.GetArmingId() {
		t.Errorf("the second attempt: %v", d)
	}
}

// Whoever can forge a MAC address can neither fill the audit log nor keep the
// true machine out.
func TestAFloodOfKeysIsBounded(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	r.machine("52:54:00:00:00:99").enrol() // the server's own certificate is on record now
	before, err := r.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 * maxAsked {
		r.machine("52:54:00:00:00:02").enrol()
	}
	after, err := r.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Seq - before.Seq; n != maxAsked+1 {
		t.Errorf("%d keys made %d audit entries, want %d", 3*maxAsked, n, maxAsked+1)
	}
	if m, _ := r.store.Machine("w1"); len(m.Pending) != enrol.MaxPending {
		t.Errorf("%d keys are pending, want %d", len(m.Pending), enrol.MaxPending)
	}
	r.approvedMachine("w1", "52:54:00:00:00:02")
	if m, _ := r.store.Machine("w1"); m.Asked != 0 {
		t.Errorf("the count goes on after an operator's decision: %d", m.Asked)
	}
}

func TestUnknownMachinesAreBounded(t *testing.T) {
	t.Parallel()
	cfg := config(w1())
	r := start(t, cfg)
	for i := range maxUnknown + 5 {
		f := r.machine("02:00:00:00:" + twoDigits(i>>8) + ":" + twoDigits(i&255))
		if got := f.enrol(); got.GetReasonCode() != "enrol-unknown-machine" {
			t.Fatalf("%v", got)
		}
	}
	if n := len(r.store.Machines()); n != maxUnknown+1 {
		t.Errorf("%d records, want %d", n, maxUnknown+1)
	}
	if o := r.arm("unknown-020000000105", false); o.GetReasonCode() != "enrol-unknown-machine" && o.GetReasonCode() != "no-such-machine" {
		t.Errorf("arming a stranger: %v", o)
	}

	// Listed now: it is forgotten under its old name.
	cfg.Machines = append(cfg.Machines, Machine{Name: "w2", MACs: []string{"02:00:00:00:00:ff"}})
	r.restart(cfg)
	if _, ok := r.store.Machine("unknown-0200000000ff"); ok {
		t.Error("the old name is still there")
	}
	if s := r.store.State("w2"); s != machine.Approved {
		t.Errorf("w2 is %s", s)
	}
	cfg.Machines, cfg.IgnoreUnknown = cfg.Machines[:1], true
	r.restart(cfg)
	if m, _ := r.store.Machine("w2"); m.Known {
		t.Error("w2 is still known")
	}
	if got := r.machine("02:00:00:00:00:ff").enrol(); got.GetStatus() != api.EnrolResponse_STATUS_REJECTED {
		t.Errorf("unknown machines are not ignored: %v", got)
	}
}

// Strangers' new keys have a limit together; it must not count against a machine
// whose key an operator has approved.
func TestAFloodDoesNotKeepApprovedMachinesOut(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	f := r.machine("52:54:00:00:00:01")
	f.enrol()
	if o := r.approve("cp1", f.console(), false); !o.GetOk() {
		t.Fatal(o)
	}
	r.Server.fresh = rate.NewLimiter(rate.Every(time.Hour), 1)
	r.machine("52:54:00:00:00:02").enrol() // takes all there is
	if got := f.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("got %v", got)
	}
}

// What a stranger says about itself becomes a name that operators see and type.
func TestAStrangersFactsAreCheckedBeforeTheyNameIt(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	for _, mac := range []string{"\x1b]0;owned\x07", "52:54:00:00:00:99\nw1", "../w1", "52:54:00", strings.Repeat("a", 4000)} {
		if got := r.machine(mac).enrol(); got.GetReasonCode() != "enrol-no-facts" {
			t.Errorf("a MAC address of %.20q: %v", mac, got)
		}
	}
	if got := r.machine("52:54:00:00:AB:CD").enrol(); got.GetReasonCode() != "enrol-unknown-machine" {
		t.Errorf("a good one: %v", got)
	}
	for _, m := range r.store.Machines() {
		if m.Name != "w1" && m.Name != "unknown-52540000abcd" {
			t.Errorf("there is a record of %q", m.Name)
		}
	}
}

// A machine learns of its neighbours after it has asked, and waits for hours.
func TestWhatAWaitingMachineLearnsIsShown(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	shown := func(name string) string {
		t.Helper()
		list, err := r.operator(pki.RoleReader).ListMachines(t.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list.Msg.GetMachines() {
			if m.GetName() == name && len(m.GetFacts().GetInterfaces()) > 0 {
				return m.GetFacts().GetInterfaces()[0].GetNeighbour().GetPort()
			}
		}
		return ""
	}
	for _, mac := range []string{"52:54:00:00:00:01", "52:54:00:00:ab:cd"} {
		name := map[string]string{"52:54:00:00:00:01": "cp1", "52:54:00:00:ab:cd": "unknown-52540000abcd"}[mac]
		f := r.machine(mac)
		f.enrol()
		f.port = "swp7"
		f.enrol()
		if got := shown(name); got != "swp7" {
			t.Errorf("%s is plugged into %q", name, got)
		}
	}
	known, stranger := r.machine("52:54:00:00:00:02"), r.machine("52:54:00:00:00:02")
	known.enrol()
	if o := r.approve("w1", known.console(), false); !o.GetOk() {
		t.Fatal(o)
	}
	stranger.port = "elsewhere"
	for range 3 {
		stranger.enrol()
	}
	if got := shown("w1"); got != "" {
		t.Errorf("a stranger says that w1 is plugged into %q", got)
	}
}

func twoDigits(i int) string {
	return string("0123456789abcdef"[i>>4]) + string("0123456789abcdef"[i&15])
}

func TestNoPrivateKeyRestsInClear(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1()))
	key, err := r.authority.kubernetes.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(key)
	err = filepath.Walk(r.dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("PRIVATE KEY-----")) || bytes.Contains(b, block.Bytes) {
			t.Errorf("%s holds a private key", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
