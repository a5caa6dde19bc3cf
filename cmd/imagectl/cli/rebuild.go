package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
)

// rebuild builds what a manifest lists once more and adds to the checks what
// came out otherwise. since names what changed since the build.
func (g *globals) rebuild(ctx context.Context, dir, cache, work string, checks []evidence.Check) (out []evidence.Check, since []string, err error) {
	want, err := store.ReadManifest(dir)
	if err != nil {
		return nil, nil, err
	}
	p, in, err := g.buildInputs()
	if err != nil {
		return nil, nil, err
	}
	in.Sets = build.SetsOf(want)
	if err := g.addSigner(ctx, &in, p); err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	for _, a := range want.Artefacts {
		if a.Role == "" || seen[a.Role] {
			continue
		}
		seen[a.Role] = true
		in.Only = append(in.Only, a.Role)
	}
	tmp, err := os.MkdirTemp(work, "imagectl-rebuild-")
	if err != nil {
		return nil, nil, fmt.Errorf("making a directory for the rebuild: %w; give one with --work", err)
	}
	defer os.RemoveAll(tmp)
	in.Out = filepath.Join(tmp, "out")
	if in.Store, err = g.inputsApart(ctx, in, cache, tmp); err != nil {
		return nil, nil, err
	}
	if in.Builder, err = builder(ctx); err != nil {
		return nil, nil, err
	}
	in.Evidence.Program = in.Builder
	if since, err = changedSince(dir, in.Evidence); err != nil {
		return nil, nil, err
	}
	res, err := runBuild(ctx, g, in)
	if err != nil {
		return nil, nil, fmt.Errorf("rebuilding: %w", err)
	}
	return compareRebuilt(checks, want, res.Manifest), since, nil
}

// changedSince names what the provenance knows as another than there is now. A
// provenance that cannot be read names nothing; verify has a check of it.
func changedSince(dir string, now build.Evidence) (names []string, err error) {
	b, err := os.ReadFile(filepath.Join(dir, evidence.ProvenanceName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading provenance: %w", err)
	}
	e, err := provenance.ParseEnvelope(b)
	if err != nil {
		return nil, nil
	}
	then, err := provenance.Parse(e.Payload)
	if err != nil {
		return nil, nil
	}
	for _, r := range now.Files {
		if !slices.ContainsFunc(then.Sources(), func(d provenance.Resource) bool { return d.Name == r.Name && d.Digest == r.Digest }) {
			names = append(names, r.Name)
		}
	}
	if p := then.Program(); p != "" && p != now.Program {
		names = append(names, "imagectl itself")
	}
	return names, nil
}

// inputsApart opens the cache so that nothing derived by an earlier build is
// taken, and reads every input again.
func (g *globals) inputsApart(ctx context.Context, in build.Inputs, cache, tmp string) (*store.Store, error) {
	shared, err := openCache(cache)
	if err != nil {
		return nil, err
	}
	p := newProgress(g.stdio.Err)
	defer p.close()
	for _, b := range in.Blobs() {
		p.step("checking "+string(b.ID), 0, b.Size)
		if _, err := release.Fetch(ctx, shared, g.dir(), b, release.Watch{}); err != nil {
			return nil, err
		}
		if err := shared.Verify(ctx, b.SHA256); err != nil {
			return nil, err
		}
	}
	return shared.Apart(filepath.Join(tmp, "cache"))
}

func compareRebuilt(checks []evidence.Check, want, got store.Manifest) []evidence.Check {
	digests := map[string]string{}
	for _, a := range got.Artefacts {
		digests[a.Name] = a.SHA256
	}
	wanted := map[string]string{}
	for _, a := range want.Artefacts {
		wanted[a.Name] = a.SHA256
	}
	for i, c := range checks {
		sum, ok := wanted[c.Name]
		switch rebuilt := digests[c.Name]; {
		case !ok:
		case rebuilt == "":
			checks[i].Problem = cmp.Or(c.Problem, "a rebuild does not make it: cluster.yaml or imagectl.lock is another one now")
		case rebuilt != sum:
			checks[i].Problem = cmp.Or(c.Problem, "a rebuild has sha256 "+rebuilt+", want "+sum)
		case c.Problem == "":
			checks[i].Note = "rebuilt to the same bytes"
		}
	}
	return checks
}
