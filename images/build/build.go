// Package build turns locked inputs and rendered configuration into artefacts:
// disk images of each role, the compressed streams that machines install from,
// and what a netbooted installer loads. It needs no root, mounts or loop devices,
// and no network: every input is in the store already.
//
// The same inputs give the same bytes, whatever the clock, the umask, the time
// zone and the number of processors: times are the release's signing time, UUIDs
// are digests of what went in. It writes files into the output directory only
// when all of them are complete, the manifest last.
package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upstream"
)

// Inputs is everything that a build depends on.
type Inputs struct {
	Cluster string
	// Flatcar and Kubernetes are versions, for file names.
	Flatcar, Kubernetes string
	// Arch is amd64 or arm64.
	Arch string

	Image, PXEKernel, PXEInitrd    lock.Blob
	Kubeadm, Kubelet, Kubectl      lock.Blob
	CNIArchive, EtcdArchive, Agent lock.Blob
	Images                         []lock.Blob
	// Medium is what the installer as an ISO image or one program needs; nil when
	// there is to be none.
	Medium *Medium
	// Roles are all of the cluster's, also those that Only leaves out.
	Roles []Role

	// Sets to build; Only names the roles to build, all when it is empty.
	Sets []Set
	Only []string
	// Out is the output directory; it is made when missing.
	Out string
	// Store holds every blob above.
	Store *store.Store
	// Builder identifies the code that builds. What another builder left in Out
	// or in the store's derived files is not taken for up to date. It is not
	// recorded in any artefact.
	Builder string
	// Evidence is for the documents beside the artefacts.
	Evidence Evidence
}

// Role is one kind of machine.
type Role struct {
	Name         string
	ControlPlane bool
	// ConfigIgn and GrubCfg go into the OEM partition under Flatcar's names.
	ConfigIgn, GrubCfg []byte
	// Butane are the user's files that ConfigIgn was rendered from, by digest.
	Butane []store.Input
	// Extensions are the user's; ours are added.
	Extensions []Extension
	// Diskless has each extension as an artefact of its own besides, for machines that
	// run in their memory.
	Diskless bool
}

// Extension is a ready-made NAME.raw, or one that is made here by a recipe.
type Extension struct {
	Name string
	// Blob is the ready-made image; the zero value when there is a recipe.
	Blob lock.Blob
	// Recipe is nil for a ready-made image. Inputs are the recipe's, in its order.
	Recipe *upstream.Recipe
	Inputs []lock.Blob
}

func (e Extension) blobs() []lock.Blob {
	if e.Recipe != nil {
		return e.Inputs
	}
	return []lock.Blob{e.Blob}
}

// Event is progress. Total is 0 when it is not known.
type Event struct {
	// Step is a few words, such as "worker: compressing".
	Step        string
	Done, Total int64
}

// Observer receives events from several goroutines; it may be nil.
type Observer func(Event)

func (o Observer) step(format string, args ...any) {
	if o != nil {
		o(Event{Step: fmt.Sprintf(format, args...)})
	}
}

// Result says what a build did.
type Result struct {
	Manifest store.Manifest
	// Built and Unchanged are names of artefacts, sorted, without the documents
	// about them.
	Built, Unchanged []string
	// Warnings are sentences about what was put into images without being examined.
	Warnings []string
}

// run is a build in progress.
type run struct {
	in   Inputs
	obs  Observer
	time time.Time
	// tmp is a directory inside Out, for files that are not complete.
	tmp      string
	base     string
	made     map[string]artefact
	warnings []string
}

// artefact is a complete file in tmp.
type artefact struct {
	store.Artefact
	recipe string
}

// Run builds what is missing or out of date in the output directory.
func Run(ctx context.Context, in Inputs, obs Observer) (Result, error) {
	if err := check(in); err != nil {
		return Result{}, err
	}
	modTime, err := releaseTime(in.Image)
	if err != nil {
		return Result{}, err
	}
	if err := os.MkdirAll(in.Out, 0o755); err != nil {
		return Result{}, fmt.Errorf("making the output directory: %w", err)
	}
	unlock, err := lockDir(in.Out)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	removeStale(in.Out)
	tmp, err := os.MkdirTemp(in.Out, tmpPrefix)
	if err != nil {
		return Result{}, fmt.Errorf("making a directory for unfinished files: %w", err)
	}
	defer os.RemoveAll(tmp)

	r := &run{in: in, obs: obs, time: modTime, tmp: tmp, made: map[string]artefact{}}
	res, err := r.all(ctx)
	if err != nil {
		return Result{}, explainSpace(in.Out, err)
	}
	return res, nil
}

func check(in Inputs) error {
	for _, s := range in.Sets {
		if _, err := ParseSet(string(s)); err != nil {
			return fmt.Errorf("building: %w", err)
		}
	}
	if in.wants(setOVA) && in.Arch != "amd64" {
		return fmt.Errorf("building ova for %s: vSphere runs amd64; leave out --format ova", in.Arch)
	}
	if len(in.Sets) == 0 {
		return errors.New("building nothing: no format is given")
	}
	for _, set := range []Set{SetISO, SetUKI} {
		switch {
		case !in.wants(set):
		case in.Medium == nil:
			return fmt.Errorf("building format %s: cluster.yaml has no boot.iso, which names the programs that boot it", set)
		case in.Medium.Certificate != nil && in.Medium.Signer == nil:
			return fmt.Errorf("building format %s: it is to be signed, and there is no key", set)
		}
	}
	for _, name := range in.Only {
		if !slices.ContainsFunc(in.Roles, func(r Role) bool { return r.Name == name }) {
			var have []string
			for _, r := range in.Roles {
				have = append(have, r.Name)
			}
			return fmt.Errorf("building role %q: cluster.yaml has no such role, it has %q", name, have)
		}
	}
	for _, b := range in.Blobs() {
		if !in.Store.Has(b.SHA256, b.Size) {
			return fmt.Errorf("building: input %s (sha256 %s) is not in the cache; run imagectl lock", b.ID, b.SHA256)
		}
	}
	return nil
}

// Blobs lists every locked input that this build reads; the store must have them.
func (in Inputs) Blobs() []lock.Blob {
	b := []lock.Blob{in.Image, in.Kubeadm, in.Kubelet, in.Kubectl, in.CNIArchive, in.EtcdArchive, in.Agent}
	b = append(b, in.Images...)
	if in.Evidence.BaseSBOM.SHA256 != "" {
		b = append(b, in.Evidence.BaseSBOM)
	}
	if in.wants(SetPXE) || in.wants(SetISO) || in.wants(SetUKI) {
		b = append(b, in.PXEKernel, in.PXEInitrd)
	}
	switch {
	case in.Medium == nil:
	case in.wants(SetISO):
		b = append(b, in.Medium.blobs()...)
	case in.wants(SetUKI):
		b = append(b, in.Medium.Stub)
	}
	for _, r := range in.Roles {
		for _, e := range r.Extensions {
			// The kernel says which modules fit.
			b = append(append(b, e.blobs()...), in.PXEKernel)
		}
	}
	return b
}

func (in Inputs) wants(s Set) bool { return slices.Contains(in.Sets, s) }

// releaseTime is the moment the base image was signed, so that every time in an
// artefact follows from the lock file; 1970 for an unsigned base.
func releaseTime(image lock.Blob) (time.Time, error) {
	if image.Signer == nil {
		return time.Unix(0, 0).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339, image.Signer.SignedAt)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading when %s was signed: %w; run imagectl lock --update", image.ID, err)
	}
	return t.UTC(), nil
}

func (r *run) all(ctx context.Context) (Result, error) {
	if err := r.checkPrograms(); err != nil {
		return Result{}, err
	}
	old, notes, err := r.previous()
	if err != nil {
		return Result{}, err
	}
	var res Result
	var missing []target
	for _, t := range r.plan() {
		if a, ok := upToDate(r.in.Out, old, notes, t); ok {
			res.Unchanged = append(res.Unchanged, a.Name)
			r.made[a.Name] = artefact{Artefact: a, recipe: t.recipe}
		} else {
			missing = append(missing, t)
		}
	}
	if err := r.makeAll(ctx, missing); err != nil {
		return Result{}, err
	}
	m := store.Manifest{Version: 1, Cluster: r.in.Cluster, Flatcar: r.in.Flatcar, Kubernetes: r.in.Kubernetes}
	for _, t := range r.everything() {
		// What this build was not asked for stays when it is still true.
		if a, ok := upToDate(r.in.Out, old, notes, t); ok && r.made[a.Name].Name == "" {
			r.made[a.Name] = artefact{Artefact: a, recipe: t.recipe}
		}
	}
	for _, a := range r.made {
		m.Artefacts = append(m.Artefacts, a.Artefact)
	}
	for name := range r.made {
		if !slices.Contains(res.Unchanged, name) && r.inTmp(name) {
			res.Built = append(res.Built, name)
		}
	}
	slices.Sort(res.Built)
	slices.Sort(res.Unchanged)
	res.Warnings = r.warnings
	docs, changed, err := r.documents(ctx, m, old)
	if err != nil {
		return Result{}, err
	}
	m.Artefacts = append(m.Artefacts, docs...)
	res.Manifest = m
	if len(res.Built)+len(changed) == 0 && len(m.Artefacts) == len(old.Artefacts) {
		res.Manifest = old
		return res, r.testify(old)
	}
	r.obs.step("writing the manifest")
	if err := r.publish(append(changed, res.Built...), &res.Manifest); err != nil {
		return Result{}, err
	}
	return res, nil
}

// makeAll makes targets, those of one role from one image.
func (r *run) makeAll(ctx context.Context, missing []target) error {
	extensions, err := r.allExtensions(ctx, missing)
	if err != nil {
		return err
	}
	for _, role := range r.in.Roles {
		var of []target
		for _, t := range missing {
			if t.role == role.Name && t.extension == "" {
				of = append(of, t)
			}
		}
		if err := r.copyExtensions(ctx, role, extensions[role.Name], missing); err != nil {
			return err
		}
		if len(of) > 0 {
			if err := r.makeRole(ctx, role, extensions[role.Name], of); err != nil {
				return err
			}
		}
	}
	for _, t := range missing {
		if t.make == nil {
			continue
		}
		if err := t.make(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) inTmp(name string) bool {
	_, err := os.Stat(filepath.Join(r.tmp, name))
	return err == nil
}

// previous reads what an earlier build left. Damage only means building anew.
func (r *run) previous() (store.Manifest, recipes, error) {
	old, err := store.ReadManifest(r.in.Out)
	if errors.Is(err, fs.ErrNotExist) {
		return store.Manifest{}, nil, nil
	}
	if err != nil {
		r.obs.step("ignoring what was built before: %v", err)
		return store.Manifest{}, nil, nil
	}
	if old.Cluster != r.in.Cluster {
		return store.Manifest{}, nil, fmt.Errorf("building into %s: it holds artefacts of cluster %s, not %s; give another directory with -o", r.in.Out, old.Cluster, r.in.Cluster)
	}
	return old, readRecipes(r.in.Out), nil
}

// publish moves complete files to their names and writes the manifest.
func (r *run) publish(built []string, m *store.Manifest) error {
	for _, name := range built {
		if err := os.Rename(filepath.Join(r.tmp, name), filepath.Join(r.in.Out, name)); err != nil {
			return fmt.Errorf("moving %s into place: %w", name, err)
		}
	}
	if err := syncDir(r.in.Out); err != nil {
		return err
	}
	notes := recipes{}
	for name, a := range r.made {
		notes[name] = note{Recipe: a.recipe, SHA256: a.SHA256}
	}
	if err := notes.write(r.in.Out); err != nil {
		return err
	}
	if err := r.testify(*m); err != nil {
		return err
	}
	return store.WriteManifest(r.in.Out, *m)
}

const tmpPrefix = ".build-"

// removeStale clears what a killed build left; the lock is held.
func removeStale(out string) {
	left, err := filepath.Glob(filepath.Join(out, tmpPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		os.RemoveAll(dir)
	}
}

// lockDir keeps a second build out of the directory.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the output directory: %w", err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("building into %s: another build is writing there", dir)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return func() {
		// Closing alone would leave the lock with a child process that is between
		// fork and exec at this moment.
		_ = syscall.Flock(int(d.Fd()), syscall.LOCK_UN)
		d.Close()
	}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
