package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/shelf"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/server"
)

// artefacts are what a build made, on their way into a site.
type artefacts struct {
	site     *site
	manifest store.Manifest
	// dir is where they are, or, all but the manifest, on the shelf; nil for no shelf.
	dir      string
	shelf    shelf.Place
	cache    *store.Store
	progress *progress
}

// find finds one file and makes it servable.
func (o *artefacts) find(ctx context.Context, role string, f store.Format) (store.Artefact, error) {
	what := string(f)
	if role != "" {
		what = "role " + role + " as " + what
	}
	a, ok := o.manifest.Find(role, f)
	if !ok {
		return a, fmt.Errorf("%s has no %s: run imagectl build", filepath.Join(o.dir, store.ManifestName), what)
	}
	return a, o.serve(ctx, a)
}

// serve makes a file of the manifest servable.
func (o *artefacts) serve(ctx context.Context, a store.Artefact) error {
	path := filepath.Join(o.dir, a.Name)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.shelf != nil:
		if path, err = o.bring(ctx, a); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("looking for what was built: %w; run imagectl build", err)
	case info.Size() != a.Size:
		return fmt.Errorf("%s has %d bytes, the manifest says %d: run imagectl build", path, info.Size(), a.Size)
	}
	o.site.files[a.SHA256] = path
	o.site.artefacts = append(o.site.artefacts, a)
	return nil
}

// bring gets a file from the shelf. systemd is told that the start goes on: images are
// large.
func (o *artefacts) bring(ctx context.Context, a store.Artefact) (string, error) {
	const more = 3 * time.Minute
	var told time.Time
	path, err := shelf.Bring(ctx, o.cache, o.shelf, a, func(done, total int64) {
		o.progress.step("fetching "+a.Name, done, total)
		if now := time.Now(); now.Sub(told) > more/10 {
			told = now
			// Where nobody listens there is no limit either.
			_, _ = daemon.SdNotify(false, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", more.Microseconds()))
		}
	})
	switch {
	case errors.Is(err, upload.ErrNotFound):
		err = fmt.Errorf("%w; imagectl server publish puts it there", err)
	case err != nil:
		err = fmt.Errorf("%w; if the store answers and has other bytes than were built, delete them there: imagectl server publish sends only what is missing", err)
	}
	return path, err
}

// program finds one file of the installer, which firmware or iPXE check nothing of,
// so we do.
func (o *artefacts) program(ctx context.Context, f store.Format) (boot.Blob, error) {
	a, err := o.find(ctx, "", f)
	if err != nil {
		return boot.Blob{}, err
	}
	path := o.site.files[a.SHA256]
	digest, _, err := store.HashFile(ctx, path)
	if err == nil && digest != a.SHA256 {
		err = fmt.Errorf("%s was changed after it was built (its digest is %.12s…, the manifest says %.12s…): run imagectl build", path, digest, a.SHA256)
	}
	return blobOf(a), err
}

// addHTTPBoot says what UEFI loads by HTTP. With Secure Boot that is the installer
// itself, signed by the owner's key: nobody has signed iPXE with it.
func (o *artefacts) addHTTPBoot(ctx context.Context) error {
	s := o.site
	p := s.plan
	if p.Boot.SecureBoot.Certificate != nil {
		const also = "imagectl build --format uki makes it"
		if err := canBootISO(p, build.SetUKI); err != nil {
			return fmt.Errorf("with boot.secureBoot, UEFI HTTP boot loads the signed installer: %w; then %s", err, also)
		}
		if _, ok := o.manifest.Find("", store.UKI); !ok {
			return fmt.Errorf("with boot.secureBoot, UEFI HTTP boot loads the signed installer, which is not in %s: %s", filepath.Join(o.dir, store.ManifestName), also)
		}
		installer, err := o.program(ctx, store.UKI)
		firmware := map[string]boot.Firmware{"amd64": boot.UEFIx64, "arm64": boot.UEFIarm64}[p.Flatcar.Arch]
		s.httpBoot = map[boot.Firmware]httpboot.Program{firmware: {Blob: installer, Installer: true}}
		return err
	}
	s.httpBoot = map[boot.Firmware]httpboot.Program{}
	for firmware, b := range map[boot.Firmware]lock.Blob{boot.UEFIx64: p.Boot.IPXEUEFI, boot.UEFIarm64: p.Boot.IPXEArm64} {
		if b.ID == "" {
			continue
		}
		s.files[b.SHA256] = o.cache.Path(b.SHA256)
		s.httpBoot[firmware] = httpboot.Program{Blob: boot.Blob{Name: server.IPXEName(firmware), SHA256: b.SHA256, Size: b.Size}}
	}
	return nil
}

// addMedium makes the installer's ISO image servable where a BMC shall boot it.
func (o *artefacts) addMedium(ctx context.Context) error {
	s := o.site
	i := slices.IndexFunc(s.plan.Machines, func(m plan.Machine) bool { return m.BMC != nil && m.BMC.Boot == bootISO })
	if i < 0 {
		return nil
	}
	const also = "imagectl build --format iso makes it"
	why := fmt.Sprintf("with bmc.boot: iso of %s, a BMC boots the installer's ISO image", s.plan.Machines[i].Name)
	if err := canBootISO(s.plan, build.SetISO); err != nil {
		return fmt.Errorf("%s: %w; then %s", why, err, also)
	}
	if _, ok := o.manifest.Find("", store.ISO); !ok {
		return fmt.Errorf("%s, which is not in %s: %s", why, filepath.Join(o.dir, store.ManifestName), also)
	}
	a, err := o.find(ctx, "", store.ISO)
	if err != nil {
		return err
	}
	s.public, s.medium = append(s.public, blobOf(a)), s.fileURL(a)
	return nil
}

// shelfPrefix is where artefacts are in a bucket, away from images and backups.
const shelfPrefix = "servers/"

// shelf is the store of server.artefacts; nil when cluster.yaml names none.
func (g *globals) shelf(p plan.Plan) (shelf.Place, error) {
	if p.Server.Artefacts == "" {
		return nil, nil
	}
	d, err := g.destination(p.Server.Artefacts)
	if err != nil {
		return nil, err
	}
	if d.Type == "oci" {
		return g.oci(d)
	}
	d.Options = maps.Clone(d.Options)
	if d.Options == nil {
		d.Options = map[string]string{}
	}
	d.Options["prefix"] = shelfPrefix + p.Cluster
	return g.s3(d)
}
