package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

const (
	// startedPath marks that kubeadm was begun, so that a second attempt clears
	// away what the first one may have left half-written.
	startedPath = StateDir + "/kubeadm.started"
	kubeadmConf = StateDir + "/kubeadm.yaml"
	applied     = StateDir + "/applied"
	// kubeletFlags are what kubeadm gives kubelet on its command line.
	kubeletFlags = "/var/lib/kubelet/kubeadm-flags.env"
)

// secretNames are the files that a control plane gets from the server. CAs without a key
// are what kubeadm calls external.
func secretNames(serverSigns bool) []string {
	names := []string{"ca.crt", "front-proxy-ca.crt", "sa.pub", "sa.key"}
	if !serverSigns {
		names = append(names, "ca.key", "front-proxy-ca.key")
	}
	return names
}

// kubernetesSecrets lets kubeadm find its CAs ready made. Keys are 0600.
func (n *node) kubernetesSecrets(run *api.Run) Step {
	names := secretNames(run.GetKubernetes().GetServerSigns())
	return Step{
		Name: "kubernetes-secrets",
		Observe: func(context.Context) (bool, string, error) {
			for _, name := range append(names, path.Base(kubeadm.AuthPath)) {
				if ok, err := n.Host.Exists(kubeadm.PKIDir + "/" + name); err != nil || !ok {
					return false, name + " is missing", err
				}
			}
			return true, "", nil
		},
		Act: func(ctx context.Context) error {
			resp, err := n.servers.current().agent.FetchKubernetesSecrets(ctx, connect.NewRequest(&api.FetchKubernetesSecretsRequest{}))
			if err != nil {
				return fmt.Errorf("fetching the Kubernetes CAs: %w", err)
			}
			for _, f := range resp.Msg.GetFiles() {
				name := path.Base(f.GetPath())
				if !slices.Contains(names, name) {
					return fmt.Errorf("fetching the Kubernetes CAs: the server sent %s, which is none of them", f.GetPath())
				}
				mode := uint32(0o644)
				if strings.HasSuffix(name, ".key") {
					mode = 0o600
				}
				if err := n.write(file{kubeadm.PKIDir + "/" + name, f.GetContent(), mode}); err != nil {
					return err
				}
			}
			return n.write(file{kubeadm.AuthPath, kubeadm.Authentication(), 0o600})
		},
	}
}

// kubeadm runs init or join to its end, once.
func (n *node) kubeadm(run *api.Run) Step {
	action := run.GetKubernetes().GetAction()
	name := "kubeadm-join"
	switch action {
	case api.KubernetesWanted_ACTION_INIT:
		name = "kubeadm-init"
	case api.KubernetesWanted_ACTION_RUN:
		name = "kubeadm-done"
	}
	return Step{
		Name: name,
		Observe: func(context.Context) (bool, string, error) {
			done, err := n.Host.Exists(joinedPath)
			if err == nil && !done && action == api.KubernetesWanted_ACTION_RUN {
				err = waiting("the server takes this node for joined, which it is not: arm it to install it again")
			}
			return done, "kubeadm has not come to its end here", err
		},
		Act: func(ctx context.Context) error { return n.runKubeadm(ctx, run) },
	}
}

func (n *node) runKubeadm(ctx context.Context, run *api.Run) error {
	again, err := n.Host.Exists(startedPath)
	if err != nil {
		return err
	}
	if again {
		// kubelet first: between a look and its end it may still get its certificate
		// and register, and then kubeadm refuses to join a node that is Ready.
		if err := n.Host.StopUnit(ctx, kubeadm.Unit); err != nil {
			return err
		}
		joined, err := n.joinedBefore(run)
		if err != nil {
			return err
		}
		if joined {
			return n.write(file{joinedPath, []byte("found joined\n"), 0o600})
		}
		if err := n.clearKubeadm(run); err != nil {
			return err
		}
	}
	if err := n.write(file{startedPath, []byte(run.GetKubernetes().GetVersion() + "\n"), 0o600}); err != nil {
		return err
	}
	argv, err := n.prepareKubeadm(ctx, run)
	if err != nil {
		return err
	}
	if again {
		// Static pods of the first attempt may still run; kubelet takes them over.
		argv = append(argv, "--ignore-preflight-errors=Port-6443,Port-10250,Port-10257,Port-10259")
	}
	keys, _ := n.encryptionDigest()
	if _, err := n.Host.Run(ctx, host.Command{Argv: argv}); err != nil {
		return err
	}
	if keys != "" { // the API server began with them
		if err := n.noteEncryption(keys); err != nil {
			return err
		}
	}
	for _, secret := range []string{kubeadm.Discovery, kubeadm.SuperAdmin} {
		if err := n.Host.Remove(secret); err != nil {
			return err
		}
	}
	return n.write(file{joinedPath, []byte(strings.Join(argv, " ") + "\n"), 0o600})
}

func (n *node) kubeadmNode(run *api.Run, address netip.Addr) kubeadm.Node {
	_, patched := policyOf(run)
	return kubeadm.Node{
		Name: run.GetMachine(), Address: address, Labels: run.GetLabels(), Taints: run.GetTaints(), ControlPlane: run.GetControlPlane(),
		ExternalCA: run.GetKubernetes().GetServerSigns(), Patched: patched,
	}
}

// kubeadmInit is the configuration of kubeadm init and its phases on this node. dir is where
// certificates are; empty for kubeadm's own.
func (n *node) kubeadmInit(run *api.Run, dir string) ([]byte, error) {
	address, err := netip.ParseAddr(run.GetAddress())
	if err != nil {
		return nil, fmt.Errorf("reading this node's address: %w", err)
	}
	k := run.GetKubernetes()
	return kubeadm.Init(kubeadm.Cluster{
		Name: run.GetCluster(), Version: k.GetVersion(), PodCIDR: k.GetPodCidr(), ServiceCIDR: k.GetServiceCidr(), DNSDomain: k.GetDnsDomain(), SANs: k.GetApiServerSans(),
		ExternalCA: k.GetServerSigns(), CertificatesDir: dir,
	}, n.kubeadmNode(run, address))
}

// prepareKubeadm writes kubeadm's files and returns its command line.
func (n *node) prepareKubeadm(ctx context.Context, run *api.Run) ([]string, error) {
	address, err := netip.ParseAddr(run.GetAddress())
	if err != nil {
		return nil, fmt.Errorf("reading this node's address: %w", err)
	}
	k := run.GetKubernetes()
	self := n.kubeadmNode(run, address)
	if k.GetAction() == api.KubernetesWanted_ACTION_INIT {
		conf, err := n.kubeadmInit(run, "")
		if err != nil {
			return nil, err
		}
		if k.GetServerSigns() {
			if err := n.superAdmin(ctx, run); err != nil {
				return nil, err
			}
		}
		return []string{"kubeadm", "init", "--config", kubeadmConf}, n.write(file{kubeadmConf, conf, 0o600})
	}
	conf, err := kubeadm.Join(self)
	if err != nil {
		return nil, err
	}
	certs, err := n.issue(ctx, []api.CertificateProfile{api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_BOOTSTRAP})
	if err != nil {
		return nil, err
	}
	discovery, err := kubeadm.DiscoveryConfig([]byte(k.GetCaPem()), certs[0].certificate, certs[0].key)
	if err != nil {
		return nil, err
	}
	if err := n.write(file{kubeadm.Discovery, discovery, 0o600}); err != nil {
		return nil, err
	}
	return []string{"kubeadm", "join", "--config", kubeadmConf}, n.write(file{kubeadmConf, conf, 0o600})
}

// joinedBefore notices a join that was killed after the only thing that matters. kubeadm
// itself would refuse, because a Ready node of that name exists. What is left of joining a
// control plane is the step marked.
func (n *node) joinedBefore(run *api.Run) (bool, error) {
	// kubelet has its own certificate, which it gets after kubeadm has written everything
	// else; or, where that is there before, kubeadm has written the last file before it
	// starts kubelet.
	names := []string{kubeadm.KubeletConf, "/var/lib/kubelet/config.yaml"}
	if run.GetKubernetes().GetServerSigns() {
		names = append(names, kubeletFlags)
	} else {
		names = append(names, "/var/lib/kubelet/pki/kubelet-client-current.pem")
	}
	if run.GetKubernetes().GetAction() == api.KubernetesWanted_ACTION_INIT {
		return false, nil
	}
	if run.GetControlPlane() {
		for _, pod := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
			names = append(names, kubeadm.Manifests+"/"+pod+".yaml")
		}
		names = append(names, kubeadm.AdminConf)
	}
	for _, name := range names {
		// What was killed between opening a file and writing it leaves an empty one.
		if b, err := n.Host.ReadFile(name); notExist(err) || err == nil && len(b) == 0 {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return true, n.Host.Remove("/etc/kubernetes/bootstrap-kubelet.conf")
}

// clearKubeadm removes what kubeadm makes itself and may have left half-written;
// what the server gave stays. kubeadm's phases repeat without harm on what is in
// the cluster already.
func (n *node) clearKubeadm(run *api.Run) error {
	patterns := []string{kubeadm.Manifests + "/*.yaml", "/etc/kubernetes/tmp", "/var/lib/kubelet/config.yaml", kubeletFlags}
	if run.GetKubernetes().GetServerSigns() {
		patterns = append(patterns, "/etc/kubernetes/bootstrap-kubelet.conf", kubeadm.SuperAdmin)
	} else {
		patterns = append(patterns, "/etc/kubernetes/*.conf")
	}
	switch {
	case !run.GetControlPlane():
		patterns = append(patterns, kubeadm.CAPath)
	case !run.GetKubernetes().GetServerSigns():
		for _, leaf := range []string{"apiserver", "apiserver-kubelet-client", "front-proxy-client"} {
			patterns = append(patterns, kubeadm.PKIDir+"/"+leaf+".crt", kubeadm.PKIDir+"/"+leaf+".key")
		}
	}
	for _, p := range patterns {
		found, err := n.Host.Glob(p)
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := n.Host.Remove(f); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *node) kubeletRunning() Step { return n.unitRunning("kubelet-running", kubeadm.Unit) }

// marked sees to the control plane's label and taint. kubeadm 1.36's phase for
// them waits for the Node object for a while and then ends well without them,
// when kubelet registers late on a slow machine.
func (n *node) marked(run *api.Run) Step {
	return Step{
		Name: "control-plane-marked",
		Observe: func(ctx context.Context) (bool, string, error) {
			node, err := n.askNode(ctx, run.GetMachine())
			if err != nil {
				return false, "", waiting("the API server does not answer about this node: " + err.Error())
			}
			_, marked := node.labels[kubeadm.RoleLabel]
			return marked, "the node has no label " + kubeadm.RoleLabel, nil
		},
		Act: func(ctx context.Context) error {
			// Other taints kubelet gives its node itself.
			if len(run.GetTaints()) == 0 {
				if _, err := n.Host.Run(ctx, kubectl(kubeadm.AdminConf, nil, "taint", "node", run.GetMachine(), "--overwrite", kubeadm.RoleLabel+"=:NoSchedule")); err != nil {
					return err
				}
			}
			// Last: it is by the label that the step is done.
			_, err := n.Host.Run(ctx, kubectl(kubeadm.AdminConf, nil, "label", "node", run.GetMachine(), "--overwrite", kubeadm.RoleLabel+"=", kubeadm.ExcludeLabel+"="))
			return err
		},
	}
}

// manifest is something to apply once.
type manifest struct {
	name, digest string
	content      []byte
}

func (m manifest) marker() string { return applied + "/" + m.name }

// apply applies manifests whose marker is not theirs.
func (n *node) apply(step string, all []manifest) Step {
	next := func() (manifest, bool, error) {
		for _, m := range all {
			have, err := n.Host.ReadFile(m.marker())
			if err != nil && !notExist(err) {
				return m, false, err
			}
			if strings.TrimSpace(string(have)) != m.digest {
				return m, true, nil
			}
		}
		return manifest{}, false, nil
	}
	return Step{
		Name: step,
		Observe: func(context.Context) (bool, string, error) {
			m, todo, err := next()
			return !todo && err == nil, m.name + " is not applied", err
		},
		Act: func(ctx context.Context) error {
			for {
				m, todo, err := next()
				if err != nil || !todo {
					return err
				}
				// Our manifests are the reviewed ones, so they win over other writers.
				if _, err := n.Host.Run(ctx, kubectl(kubeadm.AdminConf, m.content, "apply", "--server-side", "--force-conflicts", "--field-manager", "imagectl", "--filename", "-")); err != nil {
					return fmt.Errorf("applying %s: %w", m.name, err)
				}
				if err := n.write(file{m.marker(), []byte(m.digest + "\n"), 0o600}); err != nil {
					return err
				}
			}
		},
	}
}

// kubectl is a command with someone's credentials. A service has no home
// directory for kubectl's cache.
func kubectl(conf string, stdin []byte, args ...string) host.Command {
	return host.Command{
		Argv:  append([]string{"kubectl", "--kubeconfig", conf, "--cache-dir", "/run/imagectl/kubectl", "--request-timeout", "30s"}, args...),
		Stdin: stdin,
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (n *node) bindings() Step {
	b := kubeadm.Bindings()
	return n.apply("join-permissions", []manifest{{"imagectl-join-permissions", digest(b), b}})
}

func (n *node) addons(run *api.Run) Step {
	var all []manifest
	for _, a := range run.GetKubernetes().GetAddons() {
		if got := digest(a.GetManifest()); got != a.GetSha256() || a.GetName() != path.Base(a.GetName()) || strings.HasPrefix(a.GetName(), ".") {
			err := fmt.Errorf("the add-on %q has SHA-256 %s, the lock file says %s", a.GetName(), got, a.GetSha256())
			return Step{Name: stepAddons, Observe: func(context.Context) (bool, string, error) { return false, "", err }}
		}
		all = append(all, manifest{"addon-" + a.GetName(), a.GetSha256(), a.GetManifest()})
	}
	return n.apply(stepAddons, all)
}

// nodeReady waits for Kubernetes to find this node Ready, as the node itself may
// see it.
func (n *node) nodeReady(run *api.Run) Step {
	return Step{
		Name: stepNodeReady,
		Observe: func(ctx context.Context) (bool, string, error) {
			node, err := n.askNode(ctx, run.GetMachine())
			if err != nil {
				return false, "", waiting("the API server does not answer about this node: " + err.Error())
			}
			if node.ready != "True" {
				return false, "", waiting("the node is not Ready: " + node.why)
			}
			return true, "", nil
		},
	}
}
