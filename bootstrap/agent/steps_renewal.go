package agent

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

const (
	// renewingPath is there from before kubeadm renews certificates until the whole
	// control plane runs with them.
	renewingPath = StateDir + "/kubeadm.renewing"
	// certificatesAnnotation of a static pod names the certificates that it was started
	// for.
	certificatesAnnotation = "imagectl/certificates"
)

// renewing is what renewingPath holds.
type renewing struct {
	BootID string `json:"bootID"`
	// Processes are the control plane's that ran when the renewal began.
	Processes []process `json:"processes"`
}

// process is one for good: what has its number later starts at another time.
type process struct {
	Name string `json:"name"`
	PID  string `json:"pid"`
	// Start is field 22 of /proc/PID/stat (proc(5)).
	Start string `json:"start"`
}

// component is a static pod of the control plane with the certificates that it reads.
type component struct {
	name string
	// process is its name in /proc, which has 15 characters at most.
	process string
	// certificates are those in kubeadm's directory; conf is a kubeconfig.
	certificates []string
	conf         string
}

func components() []component {
	return []component{
		{name: "kube-scheduler", process: "kube-scheduler", conf: "/etc/kubernetes/scheduler.conf"},
		{name: "kube-controller-manager", process: "kube-controller", conf: "/etc/kubernetes/controller-manager.conf"},
		{name: "kube-apiserver", process: "kube-apiserver", certificates: []string{apiServerCert, kubeadm.PKIDir + "/apiserver-kubelet-client.crt", kubeadm.PKIDir + "/front-proxy-client.crt"}},
	}
}

// apiServerCert is what the API server shows.
const apiServerCert = kubeadm.PKIDir + "/apiserver.crt"

func (c component) manifest() string { return kubeadm.Manifests + "/" + c.name + ".yaml" }

// certificateOf reads one that kubeadm made.
func (n *node) certificateOf(path string) (*x509.Certificate, error) {
	b, err := n.Host.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, ".conf") {
		_, conf, err := kubeadm.Credentials(b, n.Host.ReadFile)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return conf.Certificates[0].Leaf, nil
	}
	leaf, err := pki.ParseCertificatePEM(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return leaf, nil
}

// kubeadmPaths are the files with certificates that kubeadm, or the server in its place, made for
// a control plane.
func kubeadmPaths() []string {
	paths := []string{kubeadm.AdminConf}
	for _, c := range components() {
		paths = append(paths, c.certificates...)
		if c.conf != "" {
			paths = append(paths, c.conf)
		}
	}
	return paths
}

// kubeadmEnds is when the first of the certificates ends that kubeadm, or the server in
// its place, made for this control plane; the zero time when none can be read. kubelet renews its own.
func (n *node) kubeadmEnds() time.Time {
	var first time.Time
	for _, p := range kubeadmPaths() {
		if leaf, err := n.certificateOf(p); err == nil && (first.IsZero() || leaf.NotAfter.Before(first)) {
			first = leaf.NotAfter
		}
	}
	return first
}

// kubeadmRenewal renews what kubeadm made, gives the API server the policy of now, and starts
// the control plane anew with both, when the server says that it is this node's turn.
func (n *node) kubeadmRenewal(run *api.Run) []Step {
	if run.GetKubernetes().GetRenewBefore() == nil || !run.GetControlPlane() || run.GetKubernetes().GetAction() != api.KubernetesWanted_ACTION_RUN {
		return nil
	}
	s := []Step{n.kubeadmCertificates(run)}
	if _, ok := policyOf(run); ok {
		s = append(s, n.policyInUse(run))
	}
	return append(s, n.controlPlaneRestarted(run))
}

// kubeadmCertificates asks kubeadm, which needs no API server for it where the CAs' keys
// are here, or else the server. It may be killed anywhere: one file is replaced after the
// other.
func (n *node) kubeadmCertificates(run *api.Run) Step {
	before := run.GetKubernetes().GetRenewBefore().AsTime()
	return Step{
		Name: "kubeadm-certificates",
		Observe: func(context.Context) (bool, string, error) {
			end := n.kubeadmEnds()
			switch {
			case end.IsZero():
				return false, "", errors.New("no certificate that kubeadm made can be read")
			case end.Before(before):
				return false, "a certificate of the control plane ends at " + end.UTC().Format(time.DateOnly), nil
			case n.certificateLacks(run) != "":
				return false, "the API server's certificate does not name " + n.certificateLacks(run), nil
			}
			return true, "", nil
		},
		Act: func(ctx context.Context) error {
			if run.GetKubernetes().GetServerSigns() {
				if err := n.issueAll(ctx, bundlesOf(signedAll())); err != nil {
					return err
				}
				return n.signedCertificates(run).Act(ctx)
			}
			if err := n.noteRenewing(); err != nil {
				return err
			}
			if end := n.kubeadmEnds(); end.Before(before) {
				if _, err := n.Host.Run(ctx, host.Command{Argv: []string{"kubeadm", "certs", "renew", "all"}}); err != nil {
					return err
				}
			}
			if n.certificateLacks(run) == "" {
				return nil
			}
			return n.apiServerNamed(ctx, run)
		},
	}
}

// namedDir is where kubeadm makes a certificate of the API server with other names: it takes
// what is in its directory for good, and renewing keeps the names.
const namedDir = StateDir + "/apiserver"

// apiServerNamed has kubeadm make the API server's certificate anew, beside the one in use,
// and puts it in its place: last the certificate, by which the step is done. In between the
// pair does not fit; an API server that runs keeps what it has, and the step is done again.
func (n *node) apiServerNamed(ctx context.Context, run *api.Run) error {
	clean := func() error {
		for _, f := range []string{"ca.crt", "ca.key", "apiserver.crt", "apiserver.key"} {
			if err := n.Host.Remove(namedDir + "/" + f); err != nil {
				return err
			}
		}
		return nil
	}
	if err := clean(); err != nil { // of an attempt that was killed
		return err
	}
	for _, f := range []file{{path: "ca.crt", mode: 0o644}, {path: "ca.key", mode: 0o600}} {
		b, err := n.Host.ReadFile(kubeadm.PKIDir + "/" + f.path)
		if err != nil {
			return err
		}
		if err := n.write(file{namedDir + "/" + f.path, b, f.mode}); err != nil {
			return err
		}
	}
	conf, err := n.kubeadmInit(run, namedDir)
	if err != nil {
		return err
	}
	if err := n.write(file{kubeadmConf, conf, 0o600}); err != nil {
		return err
	}
	if _, err := n.Host.Run(ctx, host.Command{Argv: []string{"kubeadm", "init", "phase", "certs", "apiserver", "--config", kubeadmConf}}); err != nil {
		return err
	}
	for _, f := range []file{{path: "apiserver.key", mode: 0o600}, {path: "apiserver.crt", mode: 0o644}} {
		b, err := n.Host.ReadFile(namedDir + "/" + f.path)
		if err != nil {
			return err
		}
		if err := n.write(file{kubeadm.PKIDir + "/" + f.path, b, f.mode}); err != nil {
			return err
		}
	}
	return clean()
}

// controlPlaneRestarted waits until nothing runs with the certificates before. None of
// the components but the API server reads them again by itself, and that not all.
func (n *node) controlPlaneRestarted(run *api.Run) Step {
	return Step{
		Name: "control-plane-restarted",
		Observe: func(context.Context) (bool, string, error) {
			begun, err := n.Host.Exists(renewingPath)
			return !begun && err == nil, "the control plane runs with the certificates before", err
		},
		Act: func(ctx context.Context) error {
			b, err := n.Host.ReadFile(renewingPath)
			if err != nil {
				return err
			}
			var note renewing
			if err := json.Unmarshal(b, &note); err != nil {
				return fmt.Errorf("reading %s: %w", renewingPath, err)
			}
			for _, c := range components() {
				if err := n.restart(c, b); err != nil {
					return err
				}
			}
			if note.BootID == n.Host.Facts().BootID {
				now := n.controlPlaneProcesses()
				for _, p := range note.Processes {
					if slices.Contains(now, p) {
						return waiting(fmt.Sprintf("%s still runs as process %s; kubelet starts it anew", p.Name, p.PID))
					}
				}
			}
			want, err := n.certificateOf(apiServerCert)
			if err != nil {
				return err
			}
			shown, err := n.askAPIServer(ctx, run)
			if err != nil {
				return waiting("the API server is not ready again: " + err.Error())
			}
			if !shown.Equal(want) {
				return waiting("the API server shows the certificate before")
			}
			return n.Host.Remove(renewingPath)
		},
	}
}

// restart has kubelet start a component anew, once for each set of certificates and each
// note of what ran before.
func (n *node) restart(c component, note []byte) error {
	sum := sha256.New()
	sum.Write(note)
	paths := c.certificates
	if c.conf != "" {
		paths = []string{c.conf}
	}
	for _, p := range paths {
		leaf, err := n.certificateOf(p)
		if err != nil {
			return err
		}
		sum.Write(leaf.Raw)
	}
	have, err := n.Host.ReadFile(c.manifest())
	if err != nil {
		return err
	}
	want, err := kubeadm.Annotated(have, certificatesAnnotation, hex.EncodeToString(sum.Sum(nil)))
	if err != nil {
		return fmt.Errorf("%s: %w", c.manifest(), err)
	}
	if slices.Equal(have, want) {
		return nil
	}
	mode, err := n.Host.Mode(c.manifest())
	if err != nil {
		return err
	}
	return n.write(file{c.manifest(), want, uint32(mode)})
}

// controlPlaneProcesses are those of the components that run now. One that ends while it
// is looked at is none.
func (n *node) controlPlaneProcesses() []process {
	found, err := n.Host.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil // only a bad pattern
	}
	var out []process
	for _, f := range found {
		b, err := n.Host.ReadFile(f)
		if err != nil {
			continue
		}
		// PID (NAME) STATE PPID ...; a name may hold anything.
		pid, rest, ok := strings.Cut(string(b), " (")
		end := strings.LastIndex(rest, ")")
		if !ok || end < 0 {
			continue
		}
		name, fields := rest[:end], strings.Fields(rest[end+1:])
		const start = 22 - 3 // the state is field 3
		if len(fields) <= start || !slices.ContainsFunc(components(), func(c component) bool { return c.process == name }) {
			continue
		}
		out = append(out, process{Name: name, PID: pid, Start: fields[start]})
	}
	return out
}
