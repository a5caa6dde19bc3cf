package serverapi

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

const (
	signKubelet      = api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_CLIENT
	signAPIServer    = api.CertificateProfile_CERTIFICATE_PROFILE_APISERVER
	signKubeletHop   = api.CertificateProfile_CERTIFICATE_PROFILE_APISERVER_KUBELET_CLIENT
	signFrontProxy   = api.CertificateProfile_CERTIFICATE_PROFILE_FRONT_PROXY_CLIENT
	signControllers  = api.CertificateProfile_CERTIFICATE_PROFILE_CONTROLLER_MANAGER
	signScheduler    = api.CertificateProfile_CERTIFICATE_PROFILE_SCHEDULER
	signNodeAdmin    = api.CertificateProfile_CERTIFICATE_PROFILE_NODE_ADMIN
	signSuperAdmin   = api.CertificateProfile_CERTIFICATE_PROFILE_SUPER_ADMIN
	secondPlane      = "52:54:00:00:00:0b"
	withoutKeyNotice = "Kubernetes CA: its private key is on this server only, as etcd's is"
	withKeyNotice    = "Kubernetes CA: its private key is on the control planes, where kubeadm signs with it; etcd's CA key is on this server only"
)

func cp2() Machine {
	m := cp1()
	m.Name, m.MACs = "cp2", []string{secondPlane}
	return m
}

// formed is what a control plane says of which etcd and Kubernetes are well.
func formed() *api.SyncRequest {
	return &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{Running: true, Healthy: true, MemberId: "1"},
		Kubernetes: &api.KubernetesObserved{Joined: true, ApiserverReady: true, NodeReady: true}}
}

// asked is what somebody is given for one profile: the certificate, or why not.
func (f *fake) asked(p api.CertificateProfile) string {
	f.t.Helper()
	got, err := f.issue(p)
	if err != nil {
		return err.Error()
	}
	leaf, err := pki.ParseCertificatePEM([]byte(got.GetItems()[0].GetCertificatePem()))
	if err != nil {
		f.t.Fatal(err)
	}
	ca, err := pki.ParseCertificatePEM([]byte(got.GetItems()[0].GetCaPem()))
	if err != nil || leaf.CheckSignatureFrom(ca) != nil || leaf.IsCA {
		f.t.Errorf("%s: the CA that it is given has not signed it: %v", p, err)
	}
	use := map[x509.ExtKeyUsage]string{x509.ExtKeyUsageClientAuth: "client", x509.ExtKeyUsageServerAuth: "server"}
	var uses []string
	for _, u := range leaf.ExtKeyUsage {
		uses = append(uses, use[u])
	}
	out := fmt.Sprintf("%s by %s, %s, %.0f h", leaf.Subject, ca.Subject.CommonName, strings.Join(uses, " "), leaf.NotAfter.Sub(leaf.NotBefore).Hours()-48)
	if len(leaf.DNSNames) > 0 {
		out += fmt.Sprintf(", %v %v", leaf.DNSNames, leaf.IPAddresses)
	}
	return out
}

// What the server signs in the place of kubeadm and kubelet, for whom, and with what in
// it: whatever the request says.
func TestWhatTheServerSignsForKubernetes(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), cp2(), w1())
	cfg.Kubernetes.SANs = []string{"10.0.0.100", "api.example"}
	r := start(t, cfg)
	cp, second, w := r.member("cp1", cp1MAC), r.member("cp2", secondPlane), r.member("w1", w1MAC)
	etcd := formed()
	etcd.Kubernetes = nil
	cp.sync(etcd)
	if run := cp.sync(etcd).GetRun().GetKubernetes(); run.GetAction() != api.KubernetesWanted_ACTION_INIT || !run.GetServerSigns() {
		t.Fatalf("cp1 is told %v", run)
	}
	for _, row := range []struct {
		who     *fake
		profile api.CertificateProfile
		want    string
	}{
		{w, signKubelet, "CN=system:node:w1,O=system:nodes by kubernetes, client, 2160 h"},
		{w, signAPIServer, "permission_denied: w1 has role worker, which is no control plane: it gets no certificate for kube-apiserver"},
		{w, signKubeletHop, "permission_denied: w1 has role worker, which is no control plane: it gets no certificate for kube-apiserver-kubelet-client"},
		{w, signFrontProxy, "permission_denied: w1 has role worker, which is no control plane: it gets no certificate for front-proxy-client"},
		{w, signControllers, "permission_denied: w1 has role worker, which is no control plane: it gets no certificate for kube-controller-manager"},
		{w, signScheduler, "permission_denied: w1 has role worker, which is no control plane: it gets no certificate for kube-scheduler"},
		{w, signNodeAdmin, "permission_denied: w1 has role worker, which is no control plane: it gets no certificate for kubernetes-node-admin"},
		{w, signSuperAdmin, "permission_denied: w1 has role worker, which is no control plane: it gets no certificate for kubernetes-super-admin"},
		{cp, signKubelet, "CN=system:node:cp1,O=system:nodes by kubernetes, client, 2160 h"},
		{cp, signAPIServer, "CN=kube-apiserver by kubernetes, server, 2160 h, [api.example cp1 k8s.example kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local] [10.0.0.100 10.96.0.1 127.0.0.1]"},
		{cp, signKubeletHop, "CN=kube-apiserver-kubelet-client by kubernetes, client, 2160 h"},
		{cp, signFrontProxy, "CN=front-proxy-client by front-proxy-ca, client, 2160 h"},
		{cp, signControllers, "CN=system:kube-controller-manager by kubernetes, client, 2160 h"},
		{cp, signScheduler, "CN=system:kube-scheduler by kubernetes, client, 2160 h"},
		{cp, signNodeAdmin, "CN=kubernetes-admin@cp1,O=kubeadm:cluster-admins by kubernetes, client, 2160 h"},
		{cp, signSuperAdmin, "CN=kubernetes-super-admin,O=system:masters by kubernetes, client, 1 h"},
		{second, signSuperAdmin, "permission_denied: cp2 does not run kubeadm init: it gets no certificate for kubernetes-super-admin"},
		{second, 99, "invalid_argument: there is no certificate profile 99"},
	} {
		if got := row.who.asked(row.profile); got != row.want {
			t.Errorf("%s:\n got %s\nwant %s", row.profile, got, row.want)
		}
	}
	cp.sync(formed())
	if got, want := cp.asked(signSuperAdmin), "permission_denied: kubeadm init has been run: cp1 gets no certificate for kubernetes-super-admin"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// All or none: what may be signed is not given beside what may not.
	if got, err := second.issue(signKubelet, signSuperAdmin); err == nil {
		t.Errorf("got %v", got)
	}
	want := map[string]int{"kubelet-client": 2, "kube-apiserver": 1, "kube-apiserver-kubelet-client": 1, "front-proxy-client": 1, "kube-controller-manager": 1,
		"kube-scheduler": 1, "kubernetes-node-admin": 1, "kubernetes-super-admin": 1}
	for _, e := range r.entries() {
		if name, _, _ := strings.Cut(e.Detail, ","); e.Action == "certificate-issued" {
			want[name]--
			if want[name] == 0 {
				delete(want, name)
			}
		}
	}
	for name, n := range want {
		if n > 0 {
			t.Errorf("the log lacks %d entries about %s", n, name)
		}
	}
}

// entries is the audit log.
func (r *rig) entries() []audit.Entry {
	r.t.Helper()
	var out []audit.Entry
	var tip audit.Tip
	for line, err := range r.store.AuditLines(r.t.Context()) {
		var e audit.Entry
		if err == nil {
			e, tip, err = audit.Open(tip, line)
		}
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// secrets are the names of the files that a control plane gets, sorted.
func (f *fake) secrets() string {
	f.t.Helper()
	got, err := f.agent().FetchKubernetesSecrets(f.t.Context(), connect.NewRequest(&api.FetchKubernetesSecretsRequest{}))
	if err != nil {
		f.t.Fatal(err)
	}
	var names []string
	for _, file := range got.Msg.GetFiles() {
		names = append(names, strings.TrimPrefix(file.GetPath(), "/etc/kubernetes/pki/"))
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// Where the CAs' keys are is settled when kubeadm init is; cluster.yaml and restarts change
// nothing about it then, and status says so.
func TestWhereTheCAsKeysAreIsSettledOnce(t *testing.T) {
	t.Parallel()
	const without, with = "ca.crt front-proxy-ca.crt sa.key sa.pub", "ca.crt ca.key front-proxy-ca.crt front-proxy-ca.key sa.key sa.pub"
	const otherwise = "cluster.yaml says otherwise (kubernetes.caKey): where the key is was settled when cp1 ran kubeadm init, and stays so"
	for _, onNodes := range []bool{false, true} {
		cfg := config(cp1(), w1())
		cfg.Kubernetes.CAKeyOnNodes = onNodes
		r := start(t, cfg)
		cp, w := r.member("cp1", cp1MAC), r.member("w1", w1MAC)
		cp.sync(formed())
		files, notice := without, withoutKeyNotice
		if onNodes {
			files, notice = with, withKeyNotice
		}
		for _, changed := range []bool{false, true} {
			if changed {
				cfg.Kubernetes.CAKeyOnNodes = !onNodes
				r.restart(cfg)
				cp.sync(formed())
			}
			if got := cp.secrets(); got != files {
				t.Errorf("on nodes %v, changed %v: got %s, want %s", onNodes, changed, got, files)
			}
			if got := cp.sync(formed()).GetRun().GetKubernetes().GetServerSigns(); got == onNodes {
				t.Errorf("on nodes %v, changed %v: the node is told that the server signs is %v", onNodes, changed, got)
			}
			if notes := r.allNotes(); !strings.Contains(notes, notice) || strings.Contains(notes, otherwise) != changed {
				t.Errorf("on nodes %v, changed %v: %s", onNodes, changed, notes)
			}
			_, err := w.issue(signKubelet)
			if want := "permission_denied: the control planes of demo have the Kubernetes CA's key: no certificate for kubelet-client is made here"; onNodes && (err == nil || err.Error() != want) || !onNodes && err != nil {
				t.Errorf("on nodes %v, changed %v: got %v", onNodes, changed, err)
			}
		}
	}
}

// What the server signed lives for ninety days: it is renewed from day 30 on, status warns
// a month before the end, and without the server nothing ends for twenty days.
func TestWhatTheServerSignedIsRenewedInTurn(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	cp := r.member("cp1", cp1MAC)
	cp.sync(formed())
	for _, c := range []struct {
		left int // days
		turn bool
		note string
	}{
		{90, false, ""},
		{61, false, ""},
		{59, true, "cp1 renews the certificates of its control plane, and starts it anew"},
		{90, false, ""},
		{29, true, "warning: a certificate of cp1's control plane ends at DATE and should have been renewed: they are being renewed"},
	} {
		end := time.Now().Add(time.Duration(c.left) * 24 * time.Hour)
		report := formed()
		report.Kubernetes.CertificatesEnd = timestamppb.New(end)
		got := cp.sync(report).GetRun().GetKubernetes().GetRenewBefore()
		if (got != nil) != c.turn || c.turn && !got.AsTime().After(end) {
			t.Errorf("%d days left: told to renew what ends before %v", c.left, got)
		}
		notes, want := r.allNotes(), strings.Replace(c.note, "DATE", end.UTC().Format(time.DateOnly), 1)
		if want != "" && !strings.Contains(notes, want) || want == "" && strings.Contains(notes, "certificate") {
			t.Errorf("%d days left: %s", c.left, notes)
		}
	}
	if due := r.renewal(r.choices).due; due < 20*24*time.Hour {
		t.Errorf("without the server certificates end after %v", due)
	}
	// Of short lives too, a new certificate is not due again.
	for _, life := range []time.Duration{time.Hour, 24 * time.Hour, 90 * 24 * time.Hour} {
		r.lifetimes.Leaf = life
		now := time.Now()
		if before := r.renewal(r.choices).before(now); !before.Before(now.Add(life)) || !before.After(now.Add(life/2)) {
			t.Errorf("a life of %v: renewed is what ends before %s, now is %s", life, before, now)
		}
	}
}
