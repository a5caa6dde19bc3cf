package cli

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vapi/library"
	vapi "github.com/vmware/govmomi/vapi/rest"
	_ "github.com/vmware/govmomi/vapi/simulator"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload/proxmox/proxmoxtest"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// entry adds an upload target to cluster.yaml.
func (s *uploadSite) entry(text string) {
	s.Helper()
	b, err := os.ReadFile(s.path("cluster.yaml"))
	if err != nil {
		s.Fatal(err)
	}
	s.write("cluster.yaml", string(b)+text)
}

func TestUploadToProxmox(t *testing.T) {
	s := newUploadSite(t)
	pve := proxmoxtest.Start(t)
	t.Setenv("PVE_SECRET", proxmoxtest.Secret)
	s.entry(fmt.Sprintf(`
  - name: pve
    type: proxmox
    endpoint: %s
    datastore: vmpool
    username: ops@pve!imagectl
    password: {env: PVE_SECRET}
    options: {host: pve1, bridge: vmbr0, vlan: "42", memoryMB: "8192"}
  - {name: filed, type: proxmox, endpoint: "%s", datastore: vmpool, username: "ops@pve!imagectl", password: {file: pve-secret}, options: {host: pve1}}
  - {name: odd, type: proxmox, endpoint: "%s", datastore: vmpool, username: root@pam, password: {env: PVE_SECRET}, options: {host: pve1}}
  - {name: pin, type: proxmox, endpoint: "https://127.0.0.1:1", datastore: vmpool, username: a@pve!b, password: {env: PVE_SECRET}, options: {host: pve1, fingerprint: "AA:BB"}}
`, pve.URL, pve.URL, pve.URL))
	// A line's end after the secret is an editor's.
	s.write("pve-secret", proxmoxtest.Secret+"\r\n")
	img := s.build(1)
	s.wants(exitDone, "is current now", "upload", "pve", "worker", "--out", s.path("out"))
	s.wants(exitDone, "no changes", "upload", "pve", "worker", "--out", s.path("out"))
	s.wants(exitDone, "good", "upload", "verify", "pve", img.Version, "--out", s.path("out"))
	things := pve.Things()
	if len(things) != 1 || !strings.Contains(things[0], "lab-worker") {
		t.Fatalf("there is %v", things)
	}
	id := strings.Fields(things[0])[1]
	if c := pve.Config(id); c["net0"] != "virtio,bridge=vmbr0,tag=42" || c["memory"] != "8192" {
		t.Errorf("the template is %v", c)
	}
	s.wants(exitDone, "lab-worker", "upload", "list", "filed")
	s.write("pve-secret", "wrong")
	s.wants(exitAuth, "invalid token value!", "upload", "list", "filed")
	s.write("pve-secret", "\n")
	s.wants(exitUsage, "reading the password of upload target filed: it is empty", "upload", "list", "filed")
	if err := os.Remove(s.path("pve-secret")); err != nil {
		t.Fatal(err)
	}
	s.wants(exitUsage, "reading the password of upload target filed: open ", "upload", "list", "filed")
	s.wants(exitUsage, "want USER@REALM!ID", "upload", "list", "odd")
	s.wants(exitUsage, "reading the fingerprint", "upload", "list", "pin")
	t.Setenv("PVE_SECRET", "wrong")
	s.wants(exitAuth, "invalid token value!", "upload", "list", "pve")
}

// vmdk puts a VMDK beside the other images of the build.
func (s *uploadSite) vmdk(seed uint64) string {
	s.Helper()
	s.build(seed)
	m, err := store.ReadManifest(s.path("out"))
	if err != nil {
		s.Fatal(err)
	}
	img := uploadtest.Image(s.T, store.VMDK, "lab-worker", seed)
	b := make([]byte, img.Size)
	if _, err := img.File.ReadAt(b, 0); err != nil && err != io.EOF {
		s.Fatal(err)
	}
	s.write("out/lab-worker.vmdk", string(b))
	m.Artefacts = append(m.Artefacts, store.Artefact{
		Name: "lab-worker.vmdk", Role: "worker", Format: store.VMDK, Size: img.Size, SHA256: img.SHA256, RawSize: img.RawSize, RawSHA256: img.Digest,
	})
	if err := store.WriteManifest(s.path("out"), m); err != nil {
		s.Fatal(err)
	}
	return img.Version
}

func TestUploadToVSphere(t *testing.T) {
	s := newUploadSite(t)
	m := simulator.VPX()
	m.Host, m.ClusterHost, m.Machine, m.Portgroup, m.Autostart = 0, 1, 0, 0, false
	if err := m.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Remove)
	m.Service.Listen = &url.URL{User: url.UserPassword("ops", "secret")}
	m.Service.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	vc := m.Service.NewServer()
	t.Cleanup(vc.Close)
	sum := sha256.Sum256(vc.Certificate().Raw)
	t.Setenv("VC_PASSWORD", "secret")
	const entry = `
  - name: %s
    type: vsphere
    endpoint: https://%s
    datastore: LocalDS_0
    username: ops
    password: {env: VC_PASSWORD}
    options: {datacenter: DC0, pool: DC0_C0, network: VM Network, node: node.json, fingerprint: "%s"}
`
	s.entry(fmt.Sprintf(entry, "vc", vc.URL.Host, hex.EncodeToString(sum[:])) + fmt.Sprintf(entry, "fake", vc.URL.Host, strings.Repeat("0", 64)))
	version := s.vmdk(1)
	s.wants(exitServer, "is not the pinned one", "upload", "fake", "worker", "--out", s.path("out"))
	s.wants(exitDone, "is current now", "upload", "vc", "worker", "--out", s.path("out"))
	s.wants(exitDone, "no changes", "upload", "vc", "worker", "--out", s.path("out"))
	s.wants(exitDone, "good", "upload", "verify", "vc", version, "--out", s.path("out"))
	t.Setenv("VC_PASSWORD", "wrong")
	s.wants(exitAuth, "Login failure", "upload", "list", "vc")
}

func TestUploadToAContentLibrary(t *testing.T) {
	s := newUploadSite(t)
	m := simulator.VPX()
	m.Host, m.ClusterHost, m.Machine, m.Portgroup, m.Autostart = 0, 1, 0, 0, false
	if err := m.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Remove)
	user := url.UserPassword("ops", "secret")
	m.Service.Listen = &url.URL{User: user}
	m.Service.RegisterEndpoints = true
	vc := m.Service.NewServer()
	t.Cleanup(vc.Close)
	soap, err := govmomi.NewClient(t.Context(), vc.URL, true)
	if err != nil {
		t.Fatal(err)
	}
	c := vapi.NewClient(soap.Client)
	if err := c.Login(t.Context(), user); err != nil {
		t.Fatal(err)
	}
	storage := []library.StorageBacking{{DatastoreID: m.Map().Any("Datastore").Reference().Value, Type: "DATASTORE"}}
	if _, err := library.NewManager(c).CreateLibrary(t.Context(), library.Library{Name: "Flatcar images", Type: "LOCAL", Storage: storage}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VC_PASSWORD", "secret")
	s.entry(fmt.Sprintf(`
  - name: lib
    type: vsphere-library
    endpoint: http://%s
    datastore: Flatcar images
    username: ops
    password: {env: VC_PASSWORD}
`, vc.URL.Host))
	version := s.vmdk(1)
	s.wants(exitDone, "is current now", "upload", "lib", "worker", "--out", s.path("out"))
	s.wants(exitDone, "no changes", "upload", "lib", "worker", "--out", s.path("out"))
	s.wants(exitDone, "good", "upload", "verify", "lib", version, "--out", s.path("out"))
	t.Setenv("VC_PASSWORD", "wrong")
	s.wants(exitAuth, "logging in at http://127.0.0.1", "upload", "list", "lib")
}
