// Package lock is the lock file: every remote or local input of a build by
// digest and size, so that the same lock and the same cluster.yaml give the
// same bytes. It knows nothing of how inputs are found or fetched.
package lock

// ID names an input, stable across versions: see the constants and the prefixes.
type ID string

// Inputs that every cluster has.
const (
	FlatcarImage     ID = "flatcar/image"      // flatcar_production_image.bin.bz2
	FlatcarPXEKernel ID = "flatcar/pxe-kernel" // flatcar_production_pxe.vmlinuz
	FlatcarPXEInitrd ID = "flatcar/pxe-initrd" // flatcar_production_pxe_image.cpio.gz
	FlatcarSBOM      ID = "flatcar/sbom"       // flatcar_production_image_sbom.json
	Kubeadm          ID = "kubernetes/kubeadm"
	Kubelet          ID = "kubernetes/kubelet"
	Kubectl          ID = "kubernetes/kubectl"
	EtcdArchive      ID = "etcd/archive" // upstream's tar.gz
	CNIArchive       ID = "cni/archive"  // upstream's tgz
	Agent            ID = "agent/bootstrapd"
	IPXEBIOS         ID = "ipxe/bios"     // undionly.kpxe
	IPXEUEFIx64      ID = "ipxe/uefi-x64" // snponly.efi
)

// IPXEUEFIArm64 is an input of clusters that netboot machines of that kind: snponly.efi.
const IPXEUEFIArm64 ID = "ipxe/uefi-arm64"

// Inputs of clusters that boot by GRUB.
const (
	GRUBShim ID = "grub/shim" // shimx64.efi
	GRUB     ID = "grub/grub" // grubnetx64.efi
)

// Inputs of clusters that want the installer as an ISO image.
const (
	ISOStub    ID = "iso/stub"     // systemd's linuxx64.efi.stub or linuxaa64.efi.stub
	ISOLINUX   ID = "iso/isolinux" // isolinux.bin
	ISOLDLINUX ID = "iso/ldlinux"  // ldlinux.c32
	ISOMBR     ID = "iso/mbr"      // isohdpfx.bin
)

// Prefixes of inputs that cluster.yaml names; the rest of the ID is that name.
const (
	ImagesPrefix    = "images/"     // container image archives
	AddonPrefix     = "addons/"     // manifests
	ExtensionPrefix = "extensions/" // system extensions of the user's
)

// Blob is one locked input.
type Blob struct {
	ID ID `json:"id"`
	// Source is where it belongs: an http(s) URL, or a path relative to
	// cluster.yaml's directory.
	Source string `json:"source"`
	// Mirrors are other places of the same content, tried in their order.
	Mirrors []string `json:"mirrors,omitempty"`
	// SHA256 is lower-case hexadecimal.
	SHA256 string `json:"sha256"`
	// Size in bytes.
	Size int64 `json:"size"`
	// Signer says who signed it, for inputs with a signature we check.
	Signer *Signer `json:"signer,omitempty"`
}

// Signer is the OpenPGP identity behind a signature.
type Signer struct {
	// Primary is the fingerprint of the pinned primary key, upper-case hexadecimal.
	Primary string `json:"primary"`
	// Subkey made the signature.
	Subkey string `json:"subkey"`
	// SignedAt is the signature's creation time, RFC 3339 UTC; validity was
	// judged at this moment.
	SignedAt string `json:"signedAt"`
}

// Lock is the whole file. Inputs are sorted by ID.
type Lock struct {
	// Version of the format: 1.
	Version int `json:"version"`
	// Wants is the digest of what cluster.yaml asked for when the lock was made,
	// so that a stale lock is noticed.
	Wants  string `json:"wants"`
	Inputs []Blob `json:"inputs"`
}

// Find returns the input with an ID.
func (l Lock) Find(id ID) (Blob, bool) {
	for _, b := range l.Inputs {
		if b.ID == id {
			return b, true
		}
	}
	return Blob{}, false
}
