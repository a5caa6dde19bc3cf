package cluster

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
)

func TestExtendsMergesMapsAndNamedListsAndReplacesTheRest(t *testing.T) {
	files := fake{
		"site/base.yaml": string(Minimal),
		"site/prod/cluster.yaml": `version: 1
extends: ../base.yaml
cluster: prod
flatcar: {mirror: ../mirror, keyring: k/keys/flatcar.asc}
boot:
  subnets:
    - cidr: 10.0.0.0/24
roles:
  worker: {kernelArgs: [quiet]}
machines:
  - {name: worker1, address: 10.0.0.31}
  - {name: worker2, role: worker, match: {serial: X1}, address: 10.0.0.22, disk: {wwn: "0x5000"}}
addons:
  - {name: flannel, source: addons/flannel.yaml}
`,
	}
	spec, found := Parse(files.read, "site/prod/cluster.yaml")
	for _, f := range found {
		t.Errorf("%s", f)
	}
	var machines []string
	for _, m := range spec.Machines {
		machines = append(machines, m.Name+" "+m.Role+" "+m.Address.String())
	}
	if diff := cmp.Diff(machines, []string{"cp1 control-plane 10.0.0.11", "worker1 worker 10.0.0.31", "worker2 worker 10.0.0.22"}); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
	got := []string{spec.Name, spec.Flatcar.Version, spec.Flatcar.Mirror, spec.Flatcar.Keyring, spec.Agent, spec.Addons[0].Source}
	// bin/bootstrapd is written in the base file, so it starts at its directory.
	if diff := cmp.Diff(got, []string{"prod", "4593.2.5", "../mirror", "k/keys/flatcar.asc", "../bin/bootstrapd", "addons/flannel.yaml"}); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
	if len(spec.Boot.Subnets) != 1 || spec.Boot.Subnets[0].First.IsValid() {
		t.Errorf("a list without names is replaced as a whole, got %+v", spec.Boot.Subnets)
	}
	worker, _ := spec.role("worker")
	if diff := cmp.Diff(worker.KernelArgs, []string{"quiet"}); diff != "" {
		t.Error(diff)
	}
}

func TestExtendsReportsInTheFileWhereItIs(t *testing.T) {
	tests := []struct {
		name  string
		files fake
		want  string
	}{
		{"a wrong value of the base", fake{
			"a/cluster.yaml": "version: 1\nextends: ../base.yaml\n",
			"base.yaml":      strings.Replace(string(Minimal), "cluster: lab", "cluster: L", 1),
		}, `base.yaml:4:10: error: cluster: "L" is not a name: want 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit`},
		{"a missing base", fake{"cluster.yaml": "version: 1\nextends: gone.yaml\n"},
			`cluster.yaml:2:10: error: extends: gone.yaml cannot be read: no such file`},
		{"itself", fake{"cluster.yaml": "version: 1\nextends: cluster.yaml\n"},
			`cluster.yaml:2:10: error: extends: cluster.yaml extends itself: cluster.yaml → cluster.yaml`},
		{"a ring", fake{"cluster.yaml": "version: 1\nextends: b/b.yaml\n", "b/b.yaml": "version: 1\nextends: ../cluster.yaml\n"},
			`b/b.yaml:2:10: error: extends: cluster.yaml extends itself: cluster.yaml → b/b.yaml → cluster.yaml`},
		{"a snippet of the base", fake{
			"a/cluster.yaml": "version: 1\nextends: ../base.yaml\n",
			"base.yaml":      strings.Replace(string(Minimal), "# butane:", "butane:", 1),
		}, `base.yaml:48:14: error: roles.worker.butane[0]: Butane file worker.bu cannot be read: no such file`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := "cluster.yaml"
			if _, ok := tt.files["a/cluster.yaml"]; ok {
				file = "a/cluster.yaml"
			}
			_, found := Parse(tt.files.read, file)
			var all []string
			for _, f := range found {
				if f.String() == tt.want {
					return
				}
				all = append(all, f.String())
			}
			t.Errorf("want %s, got\n%s", tt.want, strings.Join(all, "\n"))
		})
	}
}

func TestWantsExpandTemplates(t *testing.T) {
	text := edit(t, "  # mirror: https://mirror.example.org/flatcar", "  mirror: /srv/release/{channel}\n  primaryKey: "+strings.Repeat("AB ", 19)+"AB\n  sbom: true",
		"  podCIDR", "  binaries: https://e.org/{version}/{arch}/\n  images: [{name: kubernetes, source: \"images-{version}.tar\"}]\n  podCIDR",
		"    kind: worker\n", "    kind: worker\n    extensions: [{name: gvisor, source: \"ext/gvisor-{arch}.raw\"}]\n",
		"  interface: eth1\n", "  interface: eth1\n  iso: {stub: b/stub, isolinux: b/isolinux.bin, ldlinux: b/ldlinux.c32, mbr: b/isohdpfx.bin}\n",
		"    kind: control-plane\n", "    kind: control-plane\n    extensions: [{name: gvisor, source: \"ext/gvisor-{arch}.raw\"}]\n")
	spec, found := Parse(fake{"cluster.yaml": text}.read, "cluster.yaml")
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	signed := &release.SignedBy{Keyring: "keys/flatcar.asc", Primary: strings.Repeat("AB", 20)}
	want := []release.Want{
		{ID: lock.FlatcarImage, Source: "/srv/release/stable/amd64-usr/4593.2.5/flatcar_production_image.bin.bz2", Signed: signed},
		{ID: lock.FlatcarPXEKernel, Source: "/srv/release/stable/amd64-usr/4593.2.5/flatcar_production_pxe.vmlinuz", Signed: signed},
		{ID: lock.FlatcarPXEInitrd, Source: "/srv/release/stable/amd64-usr/4593.2.5/flatcar_production_pxe_image.cpio.gz", Signed: signed},
		{ID: lock.Kubeadm, Source: "https://e.org/v1.36.3/amd64/kubeadm"},
		{ID: lock.Kubelet, Source: "https://e.org/v1.36.3/amd64/kubelet"},
		{ID: lock.Kubectl, Source: "https://e.org/v1.36.3/amd64/kubectl"},
		{ID: lock.EtcdArchive, Source: "https://github.com/etcd-io/etcd/releases/download/v3.6.5/etcd-v3.6.5-linux-amd64.tar.gz"},
		{ID: lock.CNIArchive, Source: "https://github.com/containernetworking/plugins/releases/download/v1.9.1/cni-plugins-linux-amd64-v1.9.1.tgz"},
		{ID: lock.Agent, Source: "bin/bootstrapd"},
		{ID: lock.IPXEBIOS, Source: "https://boot.ipxe.org/undionly.kpxe"},
		{ID: lock.IPXEUEFIx64, Source: "https://boot.ipxe.org/x86_64-efi/snponly.efi"},
		{ID: lock.FlatcarSBOM, Source: "/srv/release/stable/amd64-usr/4593.2.5/flatcar_production_image_sbom.json", Signed: signed},
		{ID: lock.ISOStub, Source: "b/stub"},
		{ID: lock.ISOLINUX, Source: "b/isolinux.bin"},
		{ID: lock.ISOLDLINUX, Source: "b/ldlinux.c32"},
		{ID: lock.ISOMBR, Source: "b/isohdpfx.bin"},
		{ID: "images/kubernetes", Source: "images-v1.36.3.tar"},
		{ID: "extensions/gvisor", Source: "ext/gvisor-amd64.raw"},
	}
	if diff := cmp.Diff(spec.Wants(), want); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
}

// Machines of flatcar.arch get iPXE unasked, others when cluster.yaml names it.
func TestIPXEForArm64(t *testing.T) {
	for _, c := range []struct {
		name   string
		edits  []string
		source string
	}{
		{"amd64", nil, ""},
		{"arm64", []string{"  # mirror: https://mirror.example.org/flatcar", "  arch: arm64"}, "https://boot.ipxe.org/arm64-efi/snponly.efi"},
		{"amd64 with some machines of another kind", []string{"boot:\n", "boot:\n  ipxe: {arm64: \"nbp/{arch}/snponly.efi\"}\n"}, "nbp/arm64/snponly.efi"},
		{"arm64 with an own build", []string{"  # mirror: https://mirror.example.org/flatcar", "  arch: arm64", "boot:\n", "boot:\n  ipxe: {arm64: nbp/own.efi}\n"}, "nbp/own.efi"},
	} {
		spec, found := Parse(fake{"cluster.yaml": edit(t, c.edits...)}.read, "cluster.yaml")
		if err := found.Err(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var got []string
		for _, w := range spec.Wants() {
			if w.ID == lock.IPXEUEFIArm64 {
				got = append(got, w.Source)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(strings.Fields(c.source)) {
			t.Errorf("%s: locked as iPXE for arm64 is %q, want %q", c.name, got, c.source)
		}
	}
}

func TestFlatcarWantsNameMirrorsAndArchitecture(t *testing.T) {
	text := edit(t, "  # mirror: https://mirror.example.org/flatcar",
		"  arch: arm64\n  signature: digests\n  mirror: https://a.example.org/{channel}/\n  mirrors: [\"https://b.example.org/{arch}\", mirror]",
		"  podCIDR", "  binaries: https://e.org/{version}/{arch}/\n  podCIDR")
	spec, found := Parse(fake{"cluster.yaml": text}.read, "cluster.yaml")
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	const file = "arm64-usr/4593.2.5/flatcar_production_image.bin.bz2"
	got := spec.Wants()[0]
	want := release.Want{
		ID: lock.FlatcarImage, Source: "https://a.example.org/stable/" + file,
		Mirrors: []string{"https://b.example.org/arm64/" + file, "mirror/" + file},
		Signed:  &release.SignedBy{Keyring: "keys/flatcar.asc", Primary: flatcarPrimaryKey, Form: release.Digests},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
	for _, w := range spec.Wants() {
		if strings.Contains(w.Source, "amd64") {
			t.Errorf("%s is %s", w.ID, w.Source)
		}
	}
	if len(found) == 0 || !strings.Contains(found[0].Message, "arm64 is new here") {
		t.Errorf("got %v, want a warning about arm64", found)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Minimal)
	f.Add([]byte("version: 1\nextends: cluster.yaml\n"))
	f.Add([]byte("version: 1\nroles: {a: {kind: worker, butane: [cluster.yaml], kernelArgs: ['a b', \"\\0\"]}}\nmachines: [{name: a, match: {mac: [00:00:00:00:00:00]}, disk: {model: '['}}]\n"))
	f.Add([]byte("boot: {subnets: [{cidr: ::/0, range: {first: ::1, last: 1.1.1.1}}, {cidr: 0.0.0.0/0, lease: 999999h}]}\nserver: {address: ::2}\n"))
	f.Add([]byte("&a [*a, {? [x] : y}, !!binary aa, ~]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		// Only the file itself can be read: a snippet may embed local files.
		read := fake{"cluster.yaml": string(text), "base.yaml": string(Minimal)}.read
		spec, found := Parse(read, "cluster.yaml")
		if found.Err() != nil {
			return
		}
		if spec.Name == "" || len(spec.Wants()) < 11 {
			t.Errorf("accepted, but the result is incomplete: %+v", spec)
		}
		for _, w := range spec.Wants() {
			if w.Source == "" {
				t.Errorf("accepted, but %s has no source", w.ID)
			}
		}
	})
}
