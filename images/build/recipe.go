package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/sysext"
)

// target is an artefact that can be made.
type target struct {
	name   string
	role   string
	format store.Format
	// extension of the role that it is a copy of; empty for none.
	extension string
	// sets that it is part of.
	sets []Set
	// recipe is a digest over everything that decides the artefact's bytes.
	recipe string
	inputs []store.Input
	// verbatim is set when the artefact is a copy of its only input.
	verbatim bool
	// make makes what is not a role's.
	make func(context.Context) error
	// write makes a role's from its image, which makeRole makes for all of them;
	// nil for the image itself.
	write convert
}

// recipe is a digest over inputs and words, by digest and position.
func recipe(words []string, inputs []store.Input) string {
	h := sha256.New()
	for _, w := range words {
		fmt.Fprintf(h, "%d:%s\n", len(w), w)
	}
	for _, i := range inputs {
		fmt.Fprintf(h, "%s=%s\n", i.ID, i.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// everything lists all targets of the cluster in all formats.
func (r *run) everything() []target {
	var out []target
	for _, role := range r.in.Roles {
		out = append(out, r.roleTargets(role)...)
	}
	return slices.Concat(out, r.pxeTargets(), r.mediumTargets())
}

// plan lists the targets that were asked for.
func (r *run) plan() []target {
	var out []target
	for _, t := range r.everything() {
		if t.role != "" && len(r.in.Only) > 0 && !slices.Contains(r.in.Only, t.role) {
			continue
		}
		if slices.ContainsFunc(t.sets, r.in.wants) {
			out = append(out, t)
		}
	}
	return out
}

func (r *run) roleTargets(role Role) []target {
	inputs := r.roleInputs(role)
	rec := recipe([]string{r.roleID(role), r.in.Builder}, nil)
	var out []target
	for _, f := range diskFormats() {
		out = append(out, target{
			name: r.imageName(role) + f.suffix, role: role.Name, format: f.format, sets: f.sets,
			recipe: rec, inputs: inputs, write: f.write,
		})
	}
	return append(out, r.extensionTargets(role)...)
}

// roleID is what a role's image is, without who builds it: its UUIDs follow from
// that.
func (r *run) roleID(role Role) string {
	return recipe([]string{"role 1", r.in.Arch, role.Name, r.time.String()}, r.roleInputs(role))
}

func (r *run) imageName(role Role) string {
	return fmt.Sprintf("%s-%s-%s-%s", r.in.Cluster, role.Name, r.in.Flatcar, r.in.Kubernetes)
}

// roleInputs is what a role's image depends on, sorted by ID.
func (r *run) roleInputs(role Role) []store.Input {
	in := []store.Input{
		input(r.in.Image), input(r.in.Kubeadm), input(r.in.Kubelet), input(r.in.Kubectl), input(r.in.CNIArchive), input(r.in.Agent),
		bytesInput("rendered/config.ign", role.ConfigIgn), bytesInput("rendered/grub.cfg", role.GrubCfg),
	}
	if role.ControlPlane {
		in = append(in, input(r.in.EtcdArchive))
	}
	for _, b := range r.in.Images {
		in = append(in, input(b))
	}
	for _, e := range role.Extensions {
		for _, b := range e.blobs() {
			in = append(in, input(b))
		}
		if e.Recipe != nil {
			in = append(in, store.Input{ID: "recipes/" + lock.ID(e.Recipe.Name), SHA256: e.Recipe.Digest})
		}
	}
	slices.SortFunc(in, func(a, b store.Input) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return in
}

func (r *run) pxeTargets() []target {
	cluster := r.in.Cluster
	copied := func(name string, format store.Format, b lock.Blob) target {
		inputs := []store.Input{input(b)}
		t := target{name: name, format: format, sets: []Set{SetPXE}, recipe: recipe([]string{"copy 1", name}, inputs), inputs: inputs, verbatim: true}
		t.make = func(ctx context.Context) error { return r.copyFile(ctx, t, r.in.Store.Path(b.SHA256)) }
		return t
	}
	agent := target{name: sysext.AgentName + ".raw", format: store.Sysext, sets: []Set{SetPXE}, inputs: []store.Input{input(r.in.Agent)}}
	agent.recipe = recipe([]string{"agent 1", r.in.Builder, r.in.Arch, r.time.String()}, agent.inputs)
	agent.make = func(ctx context.Context) error {
		path, err := r.agentExtension(ctx)
		if err != nil {
			return err
		}
		return r.copyFile(ctx, agent, path)
	}
	return []target{
		copied(cluster+"-pxe.vmlinuz", store.PXEKernel, r.in.PXEKernel),
		copied(cluster+"-pxe.cpio.gz", store.PXEInitrd, r.in.PXEInitrd),
		agent,
	}
}

func input(b lock.Blob) store.Input { return store.Input{ID: b.ID, SHA256: b.SHA256} }

func bytesInput(id lock.ID, b []byte) store.Input {
	sum := sha256.Sum256(b)
	return store.Input{ID: id, SHA256: hex.EncodeToString(sum[:])}
}

// recipesName is a file of the builder's own in the output directory. Losing it
// costs one build.
const recipesName = ".recipes.json"

// recipes remembers, by artefact, what it was made from.
type recipes map[string]note

type note struct {
	Recipe string `json:"recipe"`
	SHA256 string `json:"sha256"`
}

func readRecipes(dir string) recipes {
	b, err := os.ReadFile(filepath.Join(dir, recipesName))
	if err != nil {
		return nil
	}
	var n recipes
	if json.Unmarshal(b, &n) != nil {
		return nil
	}
	return n
}

func (n recipes) write(dir string) error {
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return fmt.Errorf("noting what was built: %w", err)
	}
	tmp := filepath.Join(dir, recipesName+".tmp")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("noting what was built: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, recipesName)); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("noting what was built: %w", err)
	}
	return nil
}

// upToDate finds a target among what was built before. A file that was written
// to after the manifest, such as an image that somebody booted, does not count.
func upToDate(dir string, old store.Manifest, notes recipes, t target) (store.Artefact, bool) {
	i := slices.IndexFunc(old.Artefacts, func(a store.Artefact) bool { return a.Name == t.name })
	if i < 0 {
		return store.Artefact{}, false
	}
	a := old.Artefacts[i]
	if n := notes[t.name]; n.Recipe != t.recipe || n.SHA256 != a.SHA256 {
		return store.Artefact{}, false
	}
	file, err := os.Stat(filepath.Join(dir, t.name))
	if err != nil || !file.Mode().IsRegular() || file.Size() != a.Size {
		return store.Artefact{}, false
	}
	manifest, err := os.Stat(filepath.Join(dir, store.ManifestName))
	if err != nil || file.ModTime().After(manifest.ModTime()) {
		return store.Artefact{}, false
	}
	return a, true
}

// spaceError says how much room something needs.
type spaceError struct {
	need int64
	err  error
}

func (e spaceError) Error() string { return e.err.Error() }
func (e spaceError) Unwrap() error { return e.err }

// explainSpace turns a full output directory into a sentence with numbers.
func explainSpace(out string, err error) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	var s spaceError
	if !errors.As(err, &s) {
		return err
	}
	var st syscall.Statfs_t
	if serr := syscall.Statfs(out, &st); serr != nil {
		return fmt.Errorf("%w; about %d MiB are needed in %s", err, s.need>>20, out)
	}
	return fmt.Errorf("%w; about %d MiB are needed in %s, whose file system has %d MiB in all; nothing there was changed", err, s.need>>20, out, int64(st.Blocks)*st.Bsize>>20)
}
