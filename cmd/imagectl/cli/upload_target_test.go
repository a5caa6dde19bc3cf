package cli

import (
	"testing"

	"github.com/imagectl/imagectl/butane/cluster"
)

// What one upload has left at a place is not looked for at another.
func TestJournalsTellPlacesApart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind, option string
	}{{"s3", "prefix"}, {"vsphere", "datacenter"}, {"vsphere", "folder"}, {"openstack", "cloud"}, {"gcp", "project"}} {
		at := func(value string) string {
			return destination{Upload: cluster.Upload{Name: "a", Type: tt.kind, Endpoint: "https://a", Bucket: "b", Options: map[string]string{tt.option: value}}}.key()
		}
		if at("one") == at("two") || at("one") == at("") || at("one") != at("one") {
			t.Errorf("%s: option %s does not tell places apart", tt.kind, tt.option)
		}
	}
}

// Who logs in is no part of the place: what was left before a token was replaced is still
// found.
func TestJournalsOutliveTheCredentials(t *testing.T) {
	t.Parallel()
	d := destination{Upload: cluster.Upload{Name: "pve", Type: "proxmox", Endpoint: "https://pve:8006", Datastore: "vms", Username: "ops@pve!old"}}
	before := d.key()
	d.Username = "ops@pve!new"
	d.Password = cluster.Secret{Env: "ANOTHER"}
	d.Options = map[string]string{"memoryMB": "8192", "fingerprint": "AA"}
	if after := d.key(); after != before {
		t.Errorf("the key was %s and is %s", before, after)
	}
	d.Datastore = "other"
	if after := d.key(); after == before {
		t.Errorf("the key is %s whatever the datastore", after)
	}
}

// Templates for x86 machines are not made of images for arm64.
func TestImagesForArm64GoNowhereAsX86(t *testing.T) {
	t.Parallel()
	refuses := map[string]bool{
		"opennebula": true, "libvirt": true, "proxmox": true, "vsphere": true, "vsphere-library": true, "digitalocean": true, "hetzner": true,
		"aws": false, "azure": false, "gcp": false, "s3": false, "oci": false, "openstack": false,
	}
	for kind, want := range refuses {
		for arch, want := range map[string]bool{"arm64": want, "amd64": false} {
			if err := fitsArch(destination{Upload: cluster.Upload{Name: "a", Type: kind}}, arch); (err != nil) != want {
				t.Errorf("%s for %s: %v, want a refusal: %t", kind, arch, err, want)
			}
		}
	}
}
