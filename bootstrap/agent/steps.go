package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// Names of steps that others look for; all are part of what operators see.
const (
	stepNodeReady = "node-ready"
	stepAddons    = "addons"
)

// joinedPath marks that kubeadm came to its end on this node.
const joinedPath = StateDir + "/kubeadm.done"

func wantsEtcd(run *api.Run) bool {
	a := run.GetEtcd().GetAction()
	return a != api.EtcdWanted_ACTION_UNSPECIFIED && a != api.EtcdWanted_ACTION_NONE
}

// steps is what a directive means for this node, in order.
func (n *node) steps(run *api.Run) []Step {
	s := []Step{
		n.hostname(run),
		n.balancing(run),
	}
	if run.GetNetwork() != nil {
		s = append(s, n.networkFiles(run))
	}
	// Before anything listens. A server that says nothing leaves the baseline.
	if run.GetFirewall() != nil {
		s = append(s, n.firewall(run))
	}
	s = append(s, n.containerRuntime(), n.images())
	if has, err := n.Host.Exists(snapshotsPath); err == nil && has && run.GetEtcd().GetAction() != api.EtcdWanted_ACTION_ALONE {
		s = append(s, n.snapshotForgotten())
	}
	if wantsEtcd(run) {
		if run.GetEtcd().GetCaPem() != "" {
			s = append(s, n.etcdAuthority(run))
		}
		switch run.GetEtcd().GetAction() {
		case api.EtcdWanted_ACTION_WAIT:
			if run.GetEtcd().GetStop() != "" {
				s = append(s, n.etcdStopped())
			}
			return append(s, turn("etcd", run.GetEtcd().GetReason()))
		case api.EtcdWanted_ACTION_JOIN:
			s = append(s, n.etcdCertificates(), n.etcdRevocations(run), n.etcdMember(run), n.etcdConfiguration(run), n.etcdRunning(), n.etcdVote(run), n.etcdHealthy())
		case api.EtcdWanted_ACTION_ALONE:
			if run.GetEtcd().GetSnapshot() != nil {
				s = append(s, n.etcdCertificates(), n.etcdRevocations(run), n.etcdRestored(run), n.etcdRunning(), n.etcdHealthy())
				break
			}
			s = append(s, n.etcdCertificates(), n.etcdRevocations(run), n.etcdData(), n.etcdAlone(run), n.etcdRunning(), n.etcdHealthy())
		case api.EtcdWanted_ACTION_RUN:
			s = append(s, n.etcdCertificates(), n.etcdRevocations(run), n.etcdData(), n.etcdConfiguration(run), n.etcdRunning(), n.etcdHealthy())
		default:
			s = append(s, n.etcdCertificates(), n.etcdRevocations(run), n.etcdConfiguration(run), n.etcdRunning(), n.etcdHealthy())
		}
	}
	if run.GetEtcd().GetRemove() != "" {
		s = append(s, n.etcdRemoval(run))
	}
	k := run.GetKubernetes().GetAction()
	if k == api.KubernetesWanted_ACTION_UNSPECIFIED || k == api.KubernetesWanted_ACTION_WAIT {
		return append(s, turn("kubernetes", run.GetKubernetes().GetReason()))
	}
	if run.GetControlPlane() {
		s = append(s, n.kubernetesSecrets(run), n.apiServerEtcdClient())
		if len(run.GetKubernetes().GetEncryptionKeys()) > 0 {
			s = append(s, n.encryptionKeys(run))
		}
		if _, ok := policyOf(run); ok {
			s = append(s, n.policyFiles(run))
		}
	}
	if run.GetKubernetes().GetServerSigns() {
		if run.GetControlPlane() {
			s = append(s, n.signedCertificates(run))
		}
		s = append(s, n.kubeletClient(run))
	}
	// kubelet's own configuration names the file, and kubeadm starts it.
	s = append(s, n.kubeletServing(run), n.kubeadm(run), n.kubeletRunning())
	// Before all that needs an API server whose certificate is good.
	s = append(s, n.kubeadmRenewal(run)...)
	first := len(run.GetKubernetes().GetAddons()) > 0 || k == api.KubernetesWanted_ACTION_INIT
	if first {
		s = append(s, n.bindings())
	}
	if run.GetControlPlane() {
		s = append(s, n.marked(run))
	}
	if first {
		s = append(s, n.addons(run))
	}
	return append(append(s, n.nodeReady(run)), n.last(run)...)
}

// last are the steps at the end, which wait for none before them: other machines wait for
// the first, an etcd that is full lets nothing else come to its end, and certificates end while
// the others wait. An add-on may never end well.
func (n *node) last(run *api.Run) []Step {
	var s []Step
	if len(run.GetKubernetes().GetFormer()) > 0 {
		s = append(s, n.formerNodes(run))
	}
	if len(run.GetKubernetes().GetDrains()) > 0 {
		s = append(s, n.drainedNodes(run))
	}
	if run.GetEtcd().GetRestart() {
		s = append(s, n.etcdRestarted(run))
	}
	if run.GetEtcd().GetTend() {
		s = append(s, n.etcdUpkeep(run))
	}
	if run.GetKubernetes().GetEncryptionRewrite() && len(run.GetKubernetes().GetEncryptionKeys()) > 0 {
		s = append(s, n.secretsRewritten(run))
	}
	s = append(s, n.renewals(run))
	if run.GetNetwork() != nil {
		s = append(s, n.networkLinks())
	}
	return s
}

// turn waits for the server to say that it is this node's turn.
func turn(name, reason string) Step {
	if reason == "" {
		reason = "the server has not said yet what to do"
	}
	return Step{Name: name, Observe: func(context.Context) (bool, string, error) { return false, "", waiting(reason) }}
}

// file is a file that a step keeps.
type file struct {
	path    string
	content []byte
	mode    uint32
}

// wrong returns the first of files that is not as it should be.
func (n *node) wrong(files []file) (string, error) {
	for _, f := range files {
		have, err := n.Host.ReadFile(f.path)
		if notExist(err) {
			return f.path + " is missing", nil
		} else if err != nil {
			return "", err
		}
		if !slices.Equal(have, f.content) {
			return f.path + " differs", nil
		}
	}
	return "", nil
}

// hostname: the name in the kernel and in files; kubelet and people read it.
func (n *node) hostname(run *api.Run) Step {
	hosts := fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", run.GetAddress(), run.GetMachine())
	files := []file{
		{path: "/etc/hostname", content: []byte(run.GetMachine() + "\n"), mode: 0o644},
		{path: "/etc/hosts", content: []byte(hosts), mode: 0o644},
	}
	return Step{
		Name: "hostname",
		Observe: func(context.Context) (bool, string, error) {
			missing, err := n.wrong(files)
			if err != nil || missing != "" {
				return false, missing, err
			}
			now, err := n.Host.ReadFile("/proc/sys/kernel/hostname")
			if notExist(err) {
				err = nil
			}
			if name := strings.TrimSpace(string(now)); name != run.GetMachine() {
				return false, fmt.Sprintf("the kernel's host name is %q", name), err
			}
			return true, "", err
		},
		Act: func(context.Context) error {
			for _, f := range files {
				if err := n.write(f); err != nil {
					return err
				}
			}
			return n.Host.SetHostname(run.GetMachine())
		},
	}
}

// balancing hands the list of API servers to the balancer, which runs in this
// process.
func (n *node) balancing(run *api.Run) Step {
	want := slices.Compact(slices.Sorted(slices.Values(run.GetKubernetes().GetApiServers())))
	return Step{
		Name: "balancer",
		Observe: func(context.Context) (bool, string, error) {
			if have := n.balancer.Backends(); !slices.Equal(have, want) {
				return false, fmt.Sprintf("it balances over %d API servers instead of %d", len(have), len(want)), nil
			}
			return true, "", nil
		},
		Act: func(context.Context) error {
			n.balancer.SetBackends(want)
			return nil
		},
	}
}
