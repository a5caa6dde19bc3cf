package cli

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
)

// buildInputs reads cluster.yaml and the lock file, renders what images/build
// needs, and remembers the digest of every file that was read on the way.
func (g *globals) buildInputs() (plan.Plan, build.Inputs, error) {
	read := fileDigests{}
	p, err := g.planBy(read.read)
	if err != nil {
		return plan.Plan{}, build.Inputs{}, err
	}
	if _, err := read.read(g.lockFile()); err != nil {
		return plan.Plan{}, build.Inputs{}, fmt.Errorf("reading lock file: %w", err)
	}
	in, err := buildInputs(p, g.dir())
	if err != nil {
		return plan.Plan{}, build.Inputs{}, err
	}
	in.Evidence = build.Evidence{Files: read.resources(g.dir()), Version: buildVersion(), Versions: versions(p), BaseSBOM: p.Flatcar.SBOM}
	return p, in, nil
}

// fileDigests are files that were read, by path.
type fileDigests map[string]string

func (f fileDigests) read(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		sum := sha256.Sum256(b)
		f[path] = hex.EncodeToString(sum[:])
	}
	return b, err
}

// resources names the files as seen from cluster.yaml's directory, so that the
// same tree elsewhere gives the same names.
func (f fileDigests) resources(dir string) []provenance.Resource {
	var out []provenance.Resource
	for path, digest := range f {
		out = append(out, provenance.Resource{Name: seenFrom(dir, path), Digest: provenance.Digest{SHA256: digest}})
	}
	slices.SortFunc(out, func(a, b provenance.Resource) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// seenFrom names a file as it is seen from a directory.
func seenFrom(dir, path string) string {
	if rel, err := filepath.Rel(dir, path); err == nil {
		return filepath.ToSlash(rel)
	}
	return path
}

// versions are those that cluster.yaml gives its inputs.
func versions(p plan.Plan) map[lock.ID]string {
	return map[lock.ID]string{
		lock.FlatcarImage: p.Flatcar.Version, lock.FlatcarPXEKernel: p.Flatcar.Version, lock.FlatcarPXEInitrd: p.Flatcar.Version,
		lock.Kubeadm: p.Kubernetes.Version, lock.Kubelet: p.Kubernetes.Version, lock.Kubectl: p.Kubernetes.Version,
		lock.EtcdArchive: p.Etcd.Version,
	}
}

// readSignKey reads the private key; none is none.
func readSignKey(path string) (*provenance.PrivateKey, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	key, err := provenance.ParsePrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key %s: %w", path, err)
	}
	return key, nil
}

func readVerifyKey(path string) (*provenance.PublicKey, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	key, err := provenance.ParsePublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("reading the public key %s: %w", path, err)
	}
	return &key, nil
}

// printSigned says whether what was built can be told from what somebody else
// put there.
func printSigned(w io.Writer, out string) error {
	path := filepath.Join(out, evidence.ProvenanceName)
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading provenance: %w", err)
	}
	e, err := provenance.ParseEnvelope(b)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if len(e.Signatures) == 0 {
		_, err = fmt.Fprintf(w, "%s: not signed; --sign-key FILE signs it\n", path)
		return err
	}
	_, err = fmt.Fprintf(w, "%s: signed by key %s\n", path, e.Signatures[0].KeyID)
	return err
}
