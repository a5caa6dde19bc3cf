package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/render"
	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/pxe/catalog"
)

func newBuild(g *globals) *cobra.Command {
	var formats []string
	var out, cache, signKey string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "build [ROLE...]",
		Short: "Build disk images and what machines netboot",
		Long: "Build the image of each role, the stream that machines install it from, and the\n" +
			"files that a machine netboots, from the inputs in imagectl.lock. No root, no\n" +
			"mounts. The same lock and cluster.yaml give the same bytes; what is up to date\n" +
			"is not built again. The output directory changes only when all is complete.\n\n" +
			"Beside the artefacts lie an SPDX bill of materials of each image, SLSA provenance\n" +
			"and SHA256SUMS. --sign-key signs the provenance, and with it everything; imagectl\n" +
			"verify --key checks it.\n\n" +
			"Formats: raw is a plain disk image of each role; pxe is kernel, initrd and agent\n" +
			"of the installer. Both include the install stream (.raw.zst). iso is the installer\n" +
			"for machines that cannot be netbooted, uki the same as one EFI program; the key of\n" +
			"boot.secureBoot signs both. All others are the disk of each role, for a platform\n" +
			"(docs/images.md).",
		Example: "  imagectl build\n  imagectl build worker --format raw.gz -o out\n  imagectl build --sign-key sign.pem",
		RunE: func(cmd *cobra.Command, args []string) error {
			started := time.Now()
			key, err := readSignKey(signKey)
			if err != nil {
				return usageError{err}
			}
			p, in, err := g.buildInputs()
			if err != nil {
				return err
			}
			in.Evidence.Key = key
			for _, f := range formats {
				s, err := build.ParseSet(f)
				if err != nil {
					return usageError{err}
				}
				if s == build.SetISO || s == build.SetUKI {
					if err := canBootISO(p, s); err != nil {
						return usageError{err}
					}
				}
				in.Sets = append(in.Sets, s)
			}
			if err := g.addSigner(cmd.Context(), &in, p); err != nil {
				return usageError{err}
			}
			for _, name := range args {
				if !hasRole(p, name) {
					return usageError{fmt.Errorf("there is no role %q in %s; roles are %s", name, g.file, strings.Join(roleNames(p), ", "))}
				}
			}
			in.Only, in.Out = args, out
			if in.Store, err = openCache(cache); err != nil {
				return err
			}
			if in.Builder, err = builder(cmd.Context()); err != nil {
				return err
			}
			in.Evidence.Program = in.Builder
			res, err := runBuild(cmd.Context(), g, in)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(g.stdio.Out, buildReport{Out: out, Built: res.Built, Unchanged: res.Unchanged, Manifest: res.Manifest})
			}
			return printBuild(g.stdio.Out, out, res, time.Since(started))
		},
	}
	cmd.Flags().StringSliceVar(&formats, "format", []string{"raw", "pxe"}, "what to build: "+setNames())
	cmd.Flags().StringVarP(&out, "out", "o", "out", "output directory")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was built as JSON")
	cmd.Flags().StringVar(&signKey, "sign-key", "", "private key that signs the provenance: Ed25519 or ECDSA P-256, PKCS#8 in PEM")
	cacheFlag(cmd, &cache)
	return cmd
}

func setNames() string {
	var names []string
	for _, s := range build.Sets() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// buildReport is the JSON form.
type buildReport struct {
	Out       string         `json:"out"`
	Built     []string       `json:"built"`
	Unchanged []string       `json:"unchanged"`
	Manifest  store.Manifest `json:"manifest"`
}

// buildInputs renders a plan into what images/build needs. dir is cluster.yaml's
// directory, for names of files.
func buildInputs(p plan.Plan, dir string) (build.Inputs, error) {
	in := build.Inputs{
		Cluster: p.Cluster, Flatcar: p.Flatcar.Version, Kubernetes: p.Kubernetes.Version, Arch: p.Flatcar.Arch,
		Image: p.Flatcar.Image, PXEKernel: p.Flatcar.PXEKernel, PXEInitrd: p.Flatcar.PXEInitrd,
		Kubeadm: p.Kubernetes.Kubeadm, Kubelet: p.Kubernetes.Kubelet, Kubectl: p.Kubernetes.Kubectl,
		CNIArchive: p.Kubernetes.CNI, EtcdArchive: p.Etcd.Archive, Agent: p.Agent, Images: p.Images,
	}
	if canBootISO(p, build.SetISO) == nil {
		m, err := buildMedium(p)
		if err != nil {
			return build.Inputs{}, err
		}
		in.Medium = m
	}
	for _, r := range p.Roles {
		ign, err := render.Role(r)
		if err != nil {
			return build.Inputs{}, err
		}
		role := build.Role{Name: r.Name, ControlPlane: r.ControlPlane, ConfigIgn: ign, GrubCfg: render.GrubCfg(r), Diskless: r.Diskless}
		for _, s := range r.Butane {
			sum := sha256.Sum256(s.Content)
			role.Butane = append(role.Butane, store.Input{ID: lock.ID("butane/" + seenFrom(dir, s.File)), SHA256: hex.EncodeToString(sum[:])})
		}
		for _, e := range r.Extensions {
			role.Extensions = append(role.Extensions, build.Extension(e))
		}
		in.Roles = append(in.Roles, role)
	}
	return in, nil
}

// canBootISO says what keeps cluster.yaml from having the installer as an ISO image
// or as one program.
func canBootISO(p plan.Plan, set build.Set) error {
	switch {
	case p.Boot.ISO.Stub.ID == "":
		return fmt.Errorf("format %s: cluster.yaml has no boot.iso, which names the programs that boot it (docs/images.md)", set)
	case p.Boot.Unknown == plan.Ignore:
		return fmt.Errorf("format %s: boot.unknown is ignore, and the server recognises a machine that was not netbooted only once it enrols: set boot.unknown: discover", set)
	}
	return nil
}

// buildMedium renders what the installer's ISO image needs. The installer asks the
// server who it is, as one that was netbooted does; the URL names no machine, since
// the image is for all of them.
func buildMedium(p plan.Plan) (*build.Medium, error) {
	at := netip.AddrPortFrom(p.Server.Address, uint16(p.Server.HTTPPort))
	ign, err := render.Medium("http://" + at.String() + "/ignition")
	if err != nil {
		return nil, err
	}
	iso := p.Boot.ISO
	return &build.Medium{
		ConfigIgn: ign, Args: append([]string{catalog.FirstBoot}, p.Boot.InstallerArgs...),
		Stub: iso.Stub, ISOLINUX: iso.ISOLINUX, LDLINUX: iso.LDLINUX, MBR: iso.MBR,
		Certificate: p.Boot.SecureBoot.Certificate,
	}, nil
}

// runBuild fetches what the cache lacks, then builds.
func runBuild(ctx context.Context, g *globals, in build.Inputs) (build.Result, error) {
	p := newProgress(g.stdio.Err)
	defer p.close()
	for _, b := range in.Blobs() {
		_, err := release.Fetch(ctx, in.Store, g.dir(), b, p.watch(b.ID))
		if err != nil {
			return build.Result{}, err
		}
	}
	res, err := build.Run(ctx, in, func(e build.Event) { p.step(e.Step, e.Done, e.Total) })
	for _, w := range res.Warnings {
		p.close()
		fmt.Fprintln(g.stdio.Err, "warning: "+w)
	}
	return res, err
}

// builder names the running program by digest: artefacts of another imagectl
// are built again, since it may build them otherwise.
func builder(ctx context.Context) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding the running program: %w", err)
	}
	digest, _, err := store.HashFile(ctx, exe)
	if err != nil {
		return "", fmt.Errorf("reading the running program: %w", err)
	}
	return digest, nil
}

func printBuild(w io.Writer, out string, res build.Result, took time.Duration) error {
	built := map[string]bool{}
	for _, name := range res.Built {
		built[name] = true
	}
	for _, a := range res.Manifest.Artefacts {
		if !a.Format.Carries() {
			continue
		}
		what := "unchanged"
		if built[a.Name] {
			what = "built"
		}
		fmt.Fprintf(w, "%-9s  %s  %s  sha256 %s\n", what, filepath.Join(out, a.Name), size(a.Size), a.SHA256[:16])
	}
	if len(res.Built) == 0 {
		fmt.Fprintf(w, "%s: everything is up to date\n", filepath.Join(out, store.ManifestName))
	} else {
		fmt.Fprintf(w, "%s: %s built in %s\n", filepath.Join(out, store.ManifestName), count(len(res.Built), "artefact"), took.Round(100*time.Millisecond))
	}
	if err := printSigned(w, out); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "next: imagectl verify %s, then imagectl serve\n", out)
	return err
}

func roleNames(p plan.Plan) []string {
	var names []string
	for _, r := range p.Roles {
		names = append(names, r.Name)
	}
	return names
}

func hasRole(p plan.Plan, name string) bool {
	for _, r := range p.Roles {
		if r.Name == name {
			return true
		}
	}
	return false
}
