package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/imagectl/imagectl/test/vm"
)

// writeSite writes what an operator keeps in git.
func (l *Lab) writeSite() error {
	for _, dir := range []string{"keys", "addons"} {
		if err := os.MkdirAll(filepath.Join(l.Site, dir), 0o755); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{
		filepath.Join(l.Release, "keys", "signing-key.asc"): "keys/flatcar.asc",
		filepath.Join(l.Upstream, "addons", "flannel.yaml"): "addons/flannel.yaml",
	} {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.Site, to), b, 0o644); err != nil {
			return err
		}
	}
	for role, path := range deathPaths() {
		if err := os.WriteFile(filepath.Join(l.Site, deathSnippet(role)), fmt.Appendf(nil, deathButane, path, DeathMark), 0o644); err != nil {
			return err
		}
	}
	if l.Butane != "" {
		if err := os.WriteFile(filepath.Join(l.Site, butaneFile), []byte(l.Butane), 0o644); err != nil {
			return err
		}
	}
	text, err := l.clusterYAML()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.Site, "cluster.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	// kubectl by its own name: the test's Kubernetes is one program.
	return os.Symlink(filepath.Join(l.Upstream, "kubernetes", kubernetesVersion, "bin/linux/amd64/kubectl"), filepath.Join(l.Work, "kubectl"))
}

const kubernetesVersion = "v1.36.3"

func (l *Lab) clusterYAML() (string, error) {
	release, err := os.Readlink(filepath.Join(l.Release, "stable", "amd64-usr", "current"))
	if err != nil {
		return "", fmt.Errorf("finding the test release's version: %w", err)
	}
	fingerprint, err := primaryFingerprint(filepath.Join(l.Release, "keys", "signing-key.asc"))
	if err != nil {
		return "", err
	}
	etcd, err := l.onlyVersion("etcd")
	if err != nil {
		return "", err
	}
	cni, err := l.onlyVersion("cni")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `version: 1
cluster: demo
flatcar:
  channel: stable
  version: %[1]s
  arch: amd64
  mirror: %[2]s/stable
  keyring: keys/flatcar.asc
  primaryKey: %[3]s
kubernetes:
  version: %[4]s
  endpoint: 10.77.0.11:6443
  podCIDR: 10.244.0.0/16
  serviceCIDR: 10.96.0.0/16
  binaries: %[5]s/kubernetes/{version}/bin/linux/{arch}
  images:
    - name: kubernetes
      source: %[5]s/images/kubernetes-%[4]s.tar
etcd:
  version: %[6]s
  source: %[5]s/etcd/{version}/etcd-{version}-linux-{arch}.tar.gz
%[16]scni:
  version: %[7]s
  source: %[5]s/cni/{version}/cni-plugins-linux-{arch}-{version}.tgz
agent:
  source: %[8]s/bootstrapd
server:
  address: %[9]s
boot:
  interface: %[10]s
  dhcp: authoritative
  unknown: discover
  subnets:
    - cidr: 10.77.0.0/24
      range: {first: 10.77.0.100, last: 10.77.0.199}
      router: %[9]s
%[15]s  ipxe:
    bios: /usr/lib/ipxe/undionly.kpxe
    uefi: /usr/lib/ipxe/snponly.efi
  installerArgs: [%[14]s]
%[13]sroles:
  control-plane:
    kind: control-plane
    kernelArgs: [%[14]s]
%[11]s  worker:
    kind: worker
    kernelArgs: [%[14]s]
%[12]saddons:
  - name: flannel
    source: addons/flannel.yaml
machines:
`, filepath.Base(release), l.Release, fingerprint, kubernetesVersion, l.Upstream, etcd, cni, l.Bin, ServerAddress, bridgeName, l.snippets("control-plane"), l.snippets("worker"), l.Boot, strings.Join(vm.KernelArgs(), ", "), l.Subnets, l.Etcd)
	for _, m := range l.Machines {
		if m.Unlisted {
			continue
		}
		fmt.Fprintf(&b, `  - name: %s
    role: %s
    match: {mac: ["%s"]}
    address: %s
`, m.Name, m.Role, m.MAC, m.Address)
		if m.Diskless {
			b.WriteString("    diskless: true\n")
		} else {
			fmt.Fprintf(&b, "    disk: {serial: disk-%s, minSize: 16GiB}\n", m.Name)
		}
		if m.BMC != "" {
			fmt.Fprintf(&b, "    bmc: %s\n", m.BMC)
		}
		if m.EK != "" {
			fmt.Fprintf(&b, "    tpm: {ek: %s}\n", m.EK)
		}
	}
	if l.Identity != "" {
		fmt.Fprintf(&b, "identity: {policy: %s}\n", l.Identity)
	}
	return b.String(), nil
}

// DeathMark is left on a node's ROOT when its agent was killed.
const DeathMark = "/var/lib/agent-killed-once"

// deathPaths are files that kubeadm writes in the middle of init and of join.
func deathPaths() map[string]string {
	return map[string]string{
		"control-plane": "/etc/kubernetes/manifests/kube-apiserver.yaml",
		"worker":        "/etc/kubernetes/bootstrap-kubelet.conf",
	}
}

func deathSnippet(role string) string { return "kill-agent-" + role + ".bu" }

// snippets is the part of a role in cluster.yaml that names its Butane files.
func (l *Lab) snippets(role string) string {
	var files []string
	if l.Deaths {
		files = append(files, deathSnippet(role))
	}
	if l.Butane != "" {
		files = append(files, butaneFile)
	}
	if len(files) == 0 {
		return ""
	}
	return fmt.Sprintf("    butane: [%s]\n", strings.Join(files, ", "))
}

// butaneFile is where Lab.Butane lies in the site.
const butaneFile = "every-role.bu"

// deathButane kills the agent once, as soon as a file appears: the only way to
// do it on a machine that nobody can log in to.
const deathButane = `variant: flatcar
version: 1.1.0
systemd:
  units:
    - name: kill-agent-once.path
      enabled: true
      contents: |
        [Path]
        PathExists=%[1]s
        [Install]
        WantedBy=multi-user.target
    - name: kill-agent-once.service
      contents: |
        [Service]
        Type=oneshot
        RemainAfterExit=yes
        ExecStart=/bin/sh -c 'test -e %[2]s && exit 0; systemctl kill --signal=KILL --kill-whom=main bootstrapd.service && touch %[2]s'
`

// primaryFingerprint reads what cluster.yaml pins from an armored keyring.
func primaryFingerprint(keyring string) (string, error) {
	f, err := os.Open(keyring)
	if err != nil {
		return "", fmt.Errorf("reading the test release's key: %w", err)
	}
	defer f.Close()
	keys, err := openpgp.ReadArmoredKeyRing(f)
	if err != nil || len(keys) != 1 {
		return "", fmt.Errorf("reading the test release's key %s: %d keys: %v", keyring, len(keys), err)
	}
	return fmt.Sprintf("%X", keys[0].PrimaryKey.Fingerprint), nil
}

// onlyVersion is the name of the one version directory of an upstream program.
func (l *Lab) onlyVersion(program string) (string, error) {
	entries, err := filepath.Glob(filepath.Join(l.Upstream, program, "v*"))
	if err != nil {
		return "", err
	}
	if len(entries) != 1 {
		return "", fmt.Errorf("want one version below %s, found %v", filepath.Join(l.Upstream, program), entries)
	}
	return filepath.Base(entries[0]), nil
}
