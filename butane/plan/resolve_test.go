package plan

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
)

func minimal(t *testing.T) cluster.Spec {
	t.Helper()
	spec, found := cluster.Parse(func(string) ([]byte, error) { return cluster.Minimal, nil }, "cluster.yaml")
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return spec
}

// locked pins whatever is wanted; each blob's digest says which it is.
func locked(t *testing.T, wants []release.Want) lock.Lock {
	t.Helper()
	var blobs []lock.Blob
	for i, w := range wants {
		b := lock.Blob{ID: w.ID, Source: w.Source, SHA256: strings.Repeat("0123456789abcdef"[i%16:i%16+1], 64), Size: int64(i + 1)}
		if w.Signed != nil {
			b.Signer = &lock.Signer{Primary: w.Signed.Primary, Subkey: w.Signed.Primary, SignedAt: "2026-08-13T00:00:00Z"}
		}
		blobs = append(blobs, b)
	}
	l, err := lock.New(release.Digest(wants), blobs)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestResolveLeavesNothingOpen(t *testing.T) {
	spec := minimal(t)
	spec.Boot.ISO = cluster.ISO{Stub: "a", ISOLINUX: "b", LDLINUX: "c", MBR: "d"}
	spec.Etcd.Heartbeat, spec.Etcd.Election = 250*time.Millisecond, 2500*time.Millisecond
	l := locked(t, spec.Wants())
	p, found := Resolve(spec, l, "imagectl.lock")
	if len(found) > 0 {
		t.Fatalf("findings: %v", found)
	}
	for name, b := range map[lock.ID]lock.Blob{
		lock.FlatcarImage: p.Flatcar.Image, lock.FlatcarPXEKernel: p.Flatcar.PXEKernel, lock.FlatcarPXEInitrd: p.Flatcar.PXEInitrd,
		lock.Kubeadm: p.Kubernetes.Kubeadm, lock.Kubelet: p.Kubernetes.Kubelet, lock.Kubectl: p.Kubernetes.Kubectl, lock.CNIArchive: p.Kubernetes.CNI,
		lock.EtcdArchive: p.Etcd.Archive, lock.Agent: p.Agent, lock.IPXEBIOS: p.Boot.IPXEBIOS, lock.IPXEUEFIx64: p.Boot.IPXEUEFI,
		lock.ISOStub: p.Boot.ISO.Stub, lock.ISOLINUX: p.Boot.ISO.ISOLINUX, lock.ISOLDLINUX: p.Boot.ISO.LDLINUX, lock.ISOMBR: p.Boot.ISO.MBR,
	} {
		want, _ := l.Find(name)
		if diff := cmp.Diff(b, want); diff != "" {
			t.Errorf("%s: got -, want +\n%s", name, diff)
		}
	}
	if p.Machines[0].Address.String() != "10.0.0.11" || p.Machines[0].Disk.Path != "/dev/vda" || p.Machines[0].LocalBoot != "exit" {
		t.Errorf("machine: %+v", p.Machines[0])
	}
	if p.Etcd.Heartbeat != 250*time.Millisecond || p.Etcd.Election != 2500*time.Millisecond {
		t.Errorf("etcd: %+v", p.Etcd)
	}
	if p.Boot.DHCP != DHCPAuthoritative || p.Boot.Unknown != Discover || p.Boot.Subnets[0].LeaseSeconds != 43200 {
		t.Errorf("boot: %+v", p.Boot)
	}
	if diff := cmp.Diff(p.Boot.InstallerArgs, []string{"systemd.ssh_auto=no", "systemd.import_credentials=no"}); diff != "" {
		t.Error("installerArgs: got -, want +\n" + diff)
	}
	if !p.Roles[0].ControlPlane || p.Roles[1].ControlPlane {
		t.Errorf("roles: %+v", p.Roles)
	}
}

func TestResolveNamesWhatIsMissingOrStale(t *testing.T) {
	spec := minimal(t)
	fresh := locked(t, spec.Wants())
	with := func(change func(*lock.Lock)) lock.Lock {
		l := fresh
		l.Inputs = slices.Clone(fresh.Inputs)
		change(&l)
		return l
	}
	remove := func(l *lock.Lock, id lock.ID) {
		l.Inputs = slices.DeleteFunc(l.Inputs, func(b lock.Blob) bool { return b.ID == id })
	}
	tests := []struct {
		name string
		lock lock.Lock
		want []string
	}{
		{"fresh", fresh, nil},
		{"a missing input", with(func(l *lock.Lock) { remove(l, lock.Kubelet); l.Wants = "old" }), []string{"imagectl.lock: error: kubernetes/kubelet: is not locked"}},
		{"a removed line", with(func(l *lock.Lock) { remove(l, lock.Kubelet) }), []string{"imagectl.lock: error: kubernetes/kubelet: is not locked"}},
		{"another source", with(func(l *lock.Lock) { l.Inputs[0].Source = "old/bootstrapd"; l.Wants = "old" }), []string{"imagectl.lock: error: agent/bootstrapd: is stale: it pins old/bootstrapd, and cluster.yaml asks for bin/bootstrapd"}},
		{"an input too many", with(func(l *lock.Lock) { l.Inputs = append(l.Inputs, lock.Blob{ID: "addons/x"}); l.Wants = "old" }), []string{"imagectl.lock: error: is stale: cluster.yaml no longer asks for addons/x"}},
		{"another keyring", with(func(l *lock.Lock) { l.Wants = "old" }), []string{"imagectl.lock: error: is stale: it was made for another cluster.yaml"}},
		{"a signer that is no longer pinned", with(func(l *lock.Lock) {
			for i, b := range l.Inputs {
				if b.ID == lock.FlatcarImage {
					l.Inputs[i].Signer = &lock.Signer{Primary: "AA"}
				}
			}
			l.Wants = "old"
		}), []string{"imagectl.lock: error: flatcar/image: is stale: cluster.yaml asks for a signature by F88CFEDEFF29A5B4D9523864E25D9AED0593B34A"}},
		{"another format", lock.Lock{Version: 2}, []string{"imagectl.lock: error: version: version 2 of the lock format is not known, want 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, found := Resolve(spec, tt.lock, "imagectl.lock")
			var got []string
			for _, f := range found {
				got = append(got, f.String())
				if f.Hint != lockHint {
					t.Errorf("hint %q", f.Hint)
				}
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Error("got -, want +\n" + diff)
			}
		})
	}
}
