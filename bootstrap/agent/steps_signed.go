package agent

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// signedDir has what the server signed for a control plane, each certificate with its
// key in one file. kubeadm wants most of them in two, which can be written only one after
// the other: what it finds is made from here, and made again after a death in between.
const signedDir = StateDir + "/kubernetes"

// signed is a certificate of a control plane that the server signs.
type signed struct {
	bundle
	// name is that of kubeadm's files for it: a pair of certificate and key in its PKI
	// directory, or a kubeconfig for user.
	name, user string
	// local: the kubeconfig is for the API server on the same machine, as kubeadm has
	// it, so that none talks to an older one.
	local bool
}

func signedAll() []signed {
	at := func(profile api.CertificateProfile, name, ca string) signed {
		return signed{bundle: bundle{profile, signedDir + "/" + name + ".pem", signedDir + "/" + ca + ".crt"}, name: name}
	}
	conf := func(profile api.CertificateProfile, name, user string, local bool) signed {
		s := at(profile, name, "ca")
		s.user, s.local = user, local
		return s
	}
	return []signed{
		at(api.CertificateProfile_CERTIFICATE_PROFILE_APISERVER, "apiserver", "ca"),
		at(api.CertificateProfile_CERTIFICATE_PROFILE_APISERVER_KUBELET_CLIENT, "apiserver-kubelet-client", "ca"),
		at(api.CertificateProfile_CERTIFICATE_PROFILE_FRONT_PROXY_CLIENT, "front-proxy-client", "front-proxy-ca"),
		conf(api.CertificateProfile_CERTIFICATE_PROFILE_CONTROLLER_MANAGER, "controller-manager", "system:kube-controller-manager", true),
		conf(api.CertificateProfile_CERTIFICATE_PROFILE_SCHEDULER, "scheduler", "system:kube-scheduler", true),
		conf(api.CertificateProfile_CERTIFICATE_PROFILE_NODE_ADMIN, "admin", "kubernetes-admin", false),
	}
}

func bundlesOf(all []signed) []bundle {
	out := make([]bundle, len(all))
	for i, s := range all {
		out[i] = s.bundle
	}
	return out
}

// signedCertificates keeps what the server signed for a control plane, and kubeadm's
// files made from it. Renewing is the server's to say: the control plane is started anew
// for it.
func (n *node) signedCertificates(run *api.Run) Step {
	s := n.certificates("control-plane-certificates", bundlesOf(signedAll()))
	good := s.Observe
	s.Observe = func(ctx context.Context) (bool, string, error) {
		if done, missing, err := good(ctx); err != nil || !done {
			return done, missing, err
		}
		path := signedAll()[0].path
		leaf, err := n.readBundle(path)
		if err != nil {
			return false, "", err
		}
		if leaf.VerifyHostname(run.GetAddress()) != nil {
			return false, path + " is not for the address " + run.GetAddress(), nil
		}
		return true, "", nil
	}
	return n.spread(s, func() ([]file, error) { return n.signedFiles(run) }, n.noteRenewing)
}

// spread adds to a step that keeps bundles the files that follow from them. before is
// called before one changes.
func (n *node) spread(bundles Step, files func() ([]file, error), before func() error) Step {
	s := bundles
	s.Observe = func(ctx context.Context) (bool, string, error) {
		if done, missing, err := bundles.Observe(ctx); err != nil || !done {
			return done, missing, err
		}
		want, err := files()
		if err != nil {
			return false, "", err
		}
		missing, err := n.wrong(want)
		return missing == "" && err == nil, missing, err
	}
	s.Act = func(ctx context.Context) error {
		if done, _, err := bundles.Observe(ctx); err != nil {
			return err
		} else if !done {
			if err := bundles.Act(ctx); err != nil {
				return err
			}
		}
		want, err := files()
		if err != nil {
			return err
		}
		if err := before(); err != nil {
			return err
		}
		for _, f := range want {
			if err := n.write(f); err != nil {
				return err
			}
		}
		return nil
	}
	return s
}

// noteRenewing remembers, on a control plane that runs, what runs now: it holds
// certificates from before. What starts later may not be known to hold all new ones before
// the last of them is written.
func (n *node) noteRenewing() error {
	if joined, err := n.Host.Exists(joinedPath); err != nil || !joined {
		return err
	}
	note, err := json.Marshal(renewing{BootID: n.Host.Facts().BootID, Processes: n.controlPlaneProcesses()})
	if err != nil {
		return err
	}
	return n.write(file{renewingPath, note, 0o600})
}

// signedFiles are kubeadm's, as they follow from signedDir.
func (n *node) signedFiles(run *api.Run) ([]file, error) {
	address, err := netip.ParseAddr(run.GetAddress())
	if err != nil {
		return nil, fmt.Errorf("reading this node's address: %w", err)
	}
	var out []file
	for _, s := range signedAll() {
		text, err := n.Host.ReadFile(s.path)
		if err != nil {
			return nil, err
		}
		certificate, key := halves(text)
		if s.user == "" {
			out = append(out, file{kubeadm.PKIDir + "/" + s.name + ".key", key, 0o600}, file{kubeadm.PKIDir + "/" + s.name + ".crt", certificate, 0o644})
			continue
		}
		server := "https://" + kubeadm.Endpoint
		if s.local {
			server = kubeadm.Server(address)
		}
		conf, err := kubeadm.Kubeconfig(server, s.user, []byte(run.GetKubernetes().GetCaPem()), certificate, key)
		if err != nil {
			return nil, err
		}
		out = append(out, file{"/etc/kubernetes/" + s.name + ".conf", conf, 0o600})
	}
	return out, nil
}

// halves takes the certificates and the key out of a bundle.
func halves(text []byte) (certificates, key []byte) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return certificates, key
		}
		if block.Type == "CERTIFICATE" {
			certificates = append(certificates, pem.EncodeToMemory(block)...)
		} else {
			key = append(key, pem.EncodeToMemory(block)...)
		}
	}
}

// superAdmin writes the kubeconfig that kubeadm init wants for its first minutes.
func (n *node) superAdmin(ctx context.Context, run *api.Run) error {
	got, err := n.issue(ctx, []api.CertificateProfile{api.CertificateProfile_CERTIFICATE_PROFILE_SUPER_ADMIN})
	if err != nil {
		return err
	}
	conf, err := kubeadm.Kubeconfig("https://"+kubeadm.Endpoint, "kubernetes-super-admin", []byte(run.GetKubernetes().GetCaPem()), got[0].certificate, got[0].key)
	if err != nil {
		return err
	}
	return n.write(file{kubeadm.SuperAdmin, conf, 0o600})
}

func kubeletClientBundle() bundle {
	return bundle{api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_CLIENT, kubeadm.KubeletClient, kubeletCA}
}

// kubeletClient keeps what kubelet shows API servers, and its kubeconfig, which names
// that. renewals renews it; kubelet reads it again.
func (n *node) kubeletClient(run *api.Run) Step {
	s := n.certificates("kubelet-client-certificate", []bundle{kubeletClientBundle()})
	return n.spread(s, func() ([]file, error) {
		server := "https://" + kubeadm.Endpoint
		if run.GetControlPlane() {
			address, err := netip.ParseAddr(run.GetAddress())
			if err != nil {
				return nil, fmt.Errorf("reading this node's address: %w", err)
			}
			server = kubeadm.Server(address)
		}
		b, err := kubeadm.KubeletKubeconfig(server, []byte(run.GetKubernetes().GetCaPem()))
		return []file{{kubeadm.KubeletConf, b, 0o600}}, err
	}, func() error { return nil })
}
