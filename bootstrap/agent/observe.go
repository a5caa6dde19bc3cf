package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// askTimeout bounds one question to a service on this node.
const askTimeout = 5 * time.Second

// askKubernetes bounds one question to the API server, which a machine that is
// busy starting everything answers late.
const askKubernetes = 30 * time.Second

// observe is what the server learns besides the steps. What cannot be observed
// is reported as not there.
func (n *node) observe(ctx context.Context, run *api.Run, out outcome) report {
	r := report{steps: out.steps, kubernetes: &api.KubernetesObserved{}}
	stepDone := func(name string) bool {
		for _, s := range out.steps {
			if s.GetName() == name {
				return s.GetState() == api.StepStatus_STATE_DONE
			}
		}
		return false
	}
	if wantsEtcd(run) {
		r.etcd = &api.EtcdObserved{Alone: n.lastAlone(), Snapshot: n.snapshotHeld(run), Stopped: n.stoppedFor(ctx, run)}
		s, err := n.etcdStatus(ctx)
		if r.etcd.Running = err == nil; !r.etcd.Running {
			if state, err := n.Host.UnitState(ctx, etcd.Unit); err == nil {
				r.etcd.Running = state == "active" || state == "activating"
			}
		}
		if err == nil {
			r.etcd.MemberId, r.etcd.Learner, r.etcd.Healthy = s.MemberID, s.Learner, s.Healthy
			n.lookAtDisk(ctx)
			n.keeping.observed(n.Now(), s, r.etcd)
			for _, m := range s.Members {
				r.etcd.Members = append(r.etcd.Members, &api.EtcdMember{Id: strconv.FormatUint(m.ID, 16), Name: m.Name, PeerUrl: strings.Join(m.PeerURLs, " "), Learner: m.Learner})
			}
		} else if has, err := n.hasEtcdData(); err == nil {
			r.etcd.Empty = !has
		}
		r.etcd.TimingStale = n.timingStale(run) != ""
		n.etcdCAObserved(ctx, run, r.etcd)
	}
	if joined, err := n.Host.Exists(joinedPath); err == nil {
		r.kubernetes.Joined = joined
	}
	r.kubernetes.NodeReady = stepDone(stepNodeReady)
	r.kubernetes.AddonsApplied = stepDone(stepAddons) || r.kubernetes.GetJoined() && len(run.GetKubernetes().GetAddons()) == 0
	if run.GetControlPlane() && r.kubernetes.Joined {
		_, err := n.askAPIServer(ctx, run)
		r.kubernetes.ApiserverReady = err == nil
		if end := n.kubeadmEnds(); !end.IsZero() {
			r.kubernetes.CertificatesEnd = timestamppb.New(end)
		}
		// After the ends: with new ones in place it is there until they are in use.
		if begun, err := n.Host.Exists(renewingPath); err == nil {
			r.kubernetes.CertificatesStale = begun
		}
	}
	r.kubernetes.RemovesFormer, r.kubernetes.DrainsNodes = run.GetControlPlane(), run.GetControlPlane()
	for _, d := range run.GetKubernetes().GetDrains() {
		if said := n.drainOf(d); said != nil {
			r.kubernetes.Drains = append(r.kubernetes.Drains, said)
		}
	}
	r.kubernetes.ApiServerOutdated = run.GetControlPlane() && r.kubernetes.Joined && n.certificateLacks(run) != ""
	if policy, ok := n.policyOf(run); ok && r.kubernetes.Joined {
		outdated, err := n.apiServerOutdated(policy)
		r.kubernetes.ApiServerOutdated = r.kubernetes.ApiServerOutdated || outdated && err == nil
		if err == nil && !outdated {
			r.kubernetes.EncryptionLoaded = n.encryptionLoaded(ctx, run)
		}
		if b, err := n.Host.ReadFile(encryptionRewrittenPath); err == nil {
			r.kubernetes.EncryptionRewritten = strings.TrimSpace(string(b))
		}
	}
	for _, f := range run.GetKubernetes().GetFormer() {
		if gone := n.goneOf(f); gone != nil {
			r.kubernetes.FormerGone = append(r.kubernetes.FormerGone, gone)
		}
	}
	r.kubernetes.KubeletVersion = n.kubeletVersion(ctx)
	return r
}

// kubeletVersion asks once.
func (n *node) kubeletVersion(ctx context.Context) string {
	n.mu.Lock()
	v := n.kubelet
	n.mu.Unlock()
	if v != "" {
		return v
	}
	b, err := n.Host.Run(ctx, host.Command{Argv: []string{"kubelet", "--version"}})
	if err != nil {
		return ""
	}
	v = strings.TrimPrefix(strings.TrimSpace(string(b)), "Kubernetes ")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.kubelet = v
	return v
}

func (n *node) etcdStatus(ctx context.Context) (etcd.Status, error) {
	conf, err := n.etcdTLS()
	if err != nil {
		return etcd.Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return n.askEtcd(ctx, etcd.LocalEndpoint, conf)
}

// etcdTLS is what a client of etcd shows and demands.
func (n *node) etcdTLS() (*tls.Config, error) {
	ca, err := n.Host.ReadFile(etcd.CAPath)
	if err != nil {
		return nil, err
	}
	bundle, err := n.Host.ReadFile(etcd.ClientPath)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(bundle, bundle)
	if err != nil {
		return nil, fmt.Errorf("reading etcd's client certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert}}, nil
}

// apiServerAddress is where this node's own API server listens.
func apiServerAddress(run *api.Run) string {
	return net.JoinHostPort(run.GetAddress(), strconv.Itoa(kubeadm.BindPort))
}

// getAPIServer asks this node's own API server, past the balancer, whether it is ready,
// and returns the certificate that it shows.
func (a *Agent) getAPIServer(ctx context.Context, run *api.Run) (*x509.Certificate, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(run.GetKubernetes().GetCaPem()))
	t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}
	defer t.CloseIdleConnections()
	c := &http.Client{Transport: t, Timeout: askTimeout}
	at := "https://" + apiServerAddress(run) + "/readyz"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking %s: %s", at, resp.Status)
	}
	return resp.TLS.PeerCertificates[0], nil
}
