// Package sysext makes the system extensions that turn Flatcar into a node, and
// examines those that a user brings.
//
// An extension is a squashfs NAME.raw whose usr/ is laid over the system's
// (systemd-sysext(8)). Three rules decide whether it is merged, and [Write] keeps
// them: the file's name is the suffix of its extension-release; ID is _any, so it
// fits every version; nothing lies outside usr/, because an opt/ would make the
// host's /opt read-only. Units start by Upholds= of multi-user.target and not by
// [Install], since releases merge extensions at different moments of the boot
// (flatcar.md section 2.7).
package sysext

import (
	"embed"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/firewall"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/squashfs"
)

//go:embed units
var units embed.FS

// Names of the extensions that we make.
const (
	AgentName      = "imagectl"
	KubernetesName = "kubernetes"
	EtcdName       = "etcd"
	ImagesName     = "images"
	RuntimesName   = "runtimes"
)

// OurNames are the names that a user's extension may not have.
func OurNames() []string {
	return []string{AgentName, KubernetesName, EtcdName, ImagesName, RuntimesName}
}

const (
	unitDir = "usr/lib/systemd/system"
	// CNIDir is where the plugins wait for kubelet.service to copy them.
	CNIDir = "usr/lib/imagectl/cni"
	// FirewallPath is the ruleset that imagectl-firewall.service loads.
	FirewallPath = "usr/share/imagectl/firewall.nft"
	// ImagesDir holds container image archives for bootstrapd to import.
	ImagesDir = "usr/share/imagectl/images"
)

// File is one program or archive to put into an extension.
type File struct {
	// Name in the directory where it goes.
	Name    string
	Content fstree.Content
	// ModTime of the zero value means the image's.
	ModTime time.Time
}

// Extension is a named tree without its extension-release.
type Extension struct {
	Name string
	tree *fstree.Tree
}

// Agent is the node agent with its unit, and the firewall that a node has until its
// agent knows the cluster.
func Agent(bootstrapd fstree.Content) (Extension, error) {
	b := newBuilder(AgentName)
	b.file("usr/bin", 0o755, File{Name: "bootstrapd", Content: bootstrapd})
	b.unit("bootstrapd.service")
	// Other units ask for it.
	b.embedded("imagectl-firewall.service", unitDir)
	b.file(path.Dir(FirewallPath), 0o644, File{Name: path.Base(FirewallPath), Content: fstree.Bytes(firewall.Rules(firewall.Input{}))})
	return b.done()
}

// Kubernetes is kubeadm, kubelet, kubectl and the CNI plugins.
func Kubernetes(kubeadm, kubelet, kubectl fstree.Content, plugins []File) (Extension, error) {
	b := newBuilder(KubernetesName)
	b.file("usr/bin", 0o755, File{Name: "kubeadm", Content: kubeadm})
	b.file("usr/bin", 0o755, File{Name: "kubelet", Content: kubelet})
	b.file("usr/bin", 0o755, File{Name: "kubectl", Content: kubectl})
	for _, p := range plugins {
		b.file(CNIDir, 0o755, p)
	}
	b.unit("kubelet.service")
	b.embedded("10-kubeadm.conf", unitDir+"/kubelet.service.d")
	// kubeadm's controller manager mounts this directory, which cannot be made in
	// a read-only /usr. Flatcar's base has the same link.
	b.link("usr/libexec/kubernetes/kubelet-plugins/volume/exec", "/var/kubernetes/kubelet-plugins/volume/exec")
	return b.done()
}

// Etcd is the server and its tools.
func Etcd(programs []File) (Extension, error) {
	b := newBuilder(EtcdName)
	for _, p := range programs {
		b.file("usr/bin", 0o755, p)
	}
	b.unit("etcd.service")
	return b.done()
}

// Images is container image archives.
func Images(archives []File) (Extension, error) {
	b := newBuilder(ImagesName)
	for _, a := range archives {
		b.file(ImagesDir, 0o644, a)
	}
	return b.done()
}

// FromTree is an extension of any files below usr/. uphold names units among them
// that multi-user.target keeps running.
func FromTree(name string, tree *fstree.Tree, uphold []string) (Extension, error) {
	b := newBuilder(name)
	b.tree = tree
	if len(uphold) > 0 {
		b.uphold(uphold...)
	}
	return b.done()
}

// Write writes an extension for an architecture (amd64 or arm64) as an image
// that starts at offset 0 of w, and returns its size. The same extension and
// time give the same bytes.
func Write(w io.WriterAt, e Extension, arch string, modTime time.Time) (int64, error) {
	release, err := releaseFile(arch)
	if err != nil {
		return 0, fmt.Errorf("writing extension %s: %w", e.Name, err)
	}
	if _, ok := e.tree.Lookup(releasePath(e.Name)); !ok {
		if err := e.tree.AddFile(releasePath(e.Name), 0o644, fstree.Bytes(release)); err != nil {
			return 0, fmt.Errorf("writing extension %s: %w", e.Name, err)
		}
	}
	size, err := squashfs.Write(w, e.tree, squashfs.Options{ModTime: modTime})
	if err != nil {
		return 0, fmt.Errorf("writing extension %s: %w", e.Name, err)
	}
	return size, nil
}

func releasePath(name string) string {
	return "usr/lib/extension-release.d/extension-release." + name
}

// releaseFile is os-release(5)'s format. systemd 256 and later reload the manager
// after a merge when asked; earlier ones ignore the key.
func releaseFile(arch string) (string, error) {
	a, err := systemdArch(arch)
	if err != nil {
		return "", err
	}
	return "ID=_any\nARCHITECTURE=" + a + "\nEXTENSION_RELOAD_MANAGER=1\n", nil
}

func systemdArch(arch string) (string, error) {
	switch arch {
	case "amd64":
		return "x86-64", nil
	case "arm64":
		return "arm64", nil
	}
	return "", fmt.Errorf("architecture %q is not known, want amd64 or arm64", arch)
}

// builder collects a tree and the first error.
type builder struct {
	name string
	tree *fstree.Tree
	err  error
}

func newBuilder(name string) *builder { return &builder{name: name, tree: &fstree.Tree{}} }

func (b *builder) add(e fstree.Entry) {
	if b.err == nil {
		b.err = b.tree.Add(e)
	}
}

func (b *builder) file(dir string, mode uint32, f File) {
	if f.Name == "" || f.Name != path.Base(f.Name) || strings.HasPrefix(f.Name, ".") {
		b.err = fmt.Errorf("%q is no plain file name", f.Name)
		return
	}
	b.add(fstree.Entry{Path: path.Join(dir, f.Name), Type: fstree.File, Mode: mode, Content: f.Content, ModTime: f.ModTime})
}

func (b *builder) link(at, target string) {
	if b.err == nil {
		b.err = b.tree.AddSymlink(at, target)
	}
}

// embedded adds one of our own files.
func (b *builder) embedded(name, dir string) {
	content, err := units.ReadFile("units/" + name)
	if err != nil {
		b.err = err
		return
	}
	b.file(dir, 0o644, File{Name: name, Content: fstree.Bytes(content)})
}

// unit adds a unit and has multi-user.target keep it running.
func (b *builder) unit(name string) {
	b.embedded(name, unitDir)
	b.uphold(name)
}

// uphold has multi-user.target keep units running.
func (b *builder) uphold(units ...string) {
	b.file(unitDir+"/multi-user.target.d", 0o644, File{
		Name:    "10-" + b.name + ".conf",
		Content: fstree.Bytes("[Unit]\nUpholds=" + strings.Join(units, " ") + "\n"),
	})
}

func (b *builder) done() (Extension, error) {
	if b.err != nil {
		return Extension{}, fmt.Errorf("composing extension %s: %w", b.name, b.err)
	}
	return Extension{Name: b.name, tree: b.tree}, nil
}
