package agent

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/host"
)

const (
	containerd = "containerd.service"
	// archives are container images that came with the system.
	archives = "/usr/share/imagectl/images/*.tar"
	// imported has one file an archive with the digest of its index.
	imported = StateDir + "/images"
	// indexMax bounds an archive's index, in bytes; real ones have a few thousand.
	indexMax = 4 << 20
)

func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func (n *node) write(f file) error {
	return n.Host.WriteFile(f.path, f.content, fs.FileMode(f.mode))
}

// containerRuntime starts containerd and waits until it answers: its unit is of
// type notify, so it is "active" only then.
func (n *node) containerRuntime() Step {
	s := n.unitRunning("container-runtime", containerd)
	s.Observe = func(ctx context.Context) (bool, string, error) {
		state, err := n.Host.UnitState(ctx, containerd)
		if err == nil && (state == "activating" || state == "reloading") {
			err = waiting(containerd + " is " + state)
		}
		return state == "active", containerd + " is " + state, err
	}
	return s
}

// unitRunning starts a unit. One that is on its way counts: the step after it
// asks the service itself.
func (n *node) unitRunning(name, unit string) Step {
	return Step{
		Name: name,
		Observe: func(ctx context.Context) (bool, string, error) {
			state, err := n.Host.UnitState(ctx, unit)
			return state == "active" || state == "activating" || state == "reloading", unit + " is " + state, err
		},
		Act: func(ctx context.Context) error {
			if err := n.Host.StartUnit(ctx, unit); err != nil {
				return err
			}
			// The start is queued, not done.
			for range 20 {
				if state, err := n.Host.UnitState(ctx, unit); err != nil || state != "inactive" {
					return err
				}
				if err := pause(ctx, retry/10); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// imagesAgain is how long containerd's images count as seen: only kubelet's
// collection of garbage takes any away, and asking costs a program.
const imagesAgain = 5 * time.Minute

// images imports the archives that came with the system, so that no registry is
// ever asked. Done is an archive whose index has the digest that was imported,
// and whose images containerd still has.
func (n *node) images() Step {
	return Step{
		Name: "images",
		Observe: func(ctx context.Context) (bool, string, error) {
			if n.Now().Sub(n.imagesSeen).Abs() < imagesAgain {
				return true, "", nil
			}
			todo, err := n.notImported(ctx)
			if err == nil && len(todo) == 0 {
				n.imagesSeen = n.Now()
			}
			if err != nil || len(todo) == 0 {
				return err == nil, "", err
			}
			return false, fmt.Sprintf("%s is not imported", path.Base(todo[0].path)), nil
		},
		Act: func(ctx context.Context) error {
			todo, err := n.notImported(ctx)
			if err != nil {
				return err
			}
			for _, a := range todo {
				// Without --local the client feeds the archive to containerd's transfer
				// service, which takes twice the processor time.
				if _, err := n.Host.Run(ctx, host.Command{Argv: []string{"ctr", "--namespace", "k8s.io", "images", "import", "--local", a.path}}); err != nil {
					return err
				}
				if err := n.write(file{path: a.marker(), content: []byte(a.digest + "\n"), mode: 0o600}); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// archive is a file of container images.
type archive struct {
	path string
	// digest of its index, which names all content by digest.
	digest string
	// names of its images.
	names []string
}

func (a archive) marker() string { return imported + "/" + path.Base(a.path) }

func (n *node) notImported(ctx context.Context) ([]archive, error) {
	all, err := n.Host.Glob(archives)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	out, err := n.Host.Run(ctx, host.Command{Argv: []string{"ctr", "--namespace", "k8s.io", "images", "list", "--quiet"}})
	if err != nil {
		return nil, err
	}
	have := strings.Fields(string(out))
	var todo []archive
	for _, p := range all {
		a, err := n.inspect(p)
		if err != nil {
			return nil, err
		}
		marked, err := n.Host.ReadFile(a.marker())
		if err != nil && !notExist(err) {
			return nil, err
		}
		gone := slices.ContainsFunc(a.names, func(name string) bool {
			// containerd may put docker.io/library/ in front of a short name.
			return !slices.ContainsFunc(have, func(h string) bool { return h == name || strings.HasSuffix(h, "/"+name) })
		})
		if gone || strings.TrimSpace(string(marked)) != a.digest {
			todo = append(todo, a)
		}
	}
	return todo, nil
}

// inspect reads an archive's index: an OCI layout's index.json, or else the
// manifest.json of "docker save". Members in between are skipped, not read.
func (n *node) inspect(name string) (archive, error) {
	f, err := n.Host.Open(name)
	if err != nil {
		return archive{}, err
	}
	defer f.Close()
	a, err := readIndex(f)
	if err != nil {
		return archive{}, fmt.Errorf("reading image archive %s: %w", name, err)
	}
	a.path = name
	return a, nil
}

func readIndex(f *os.File) (archive, error) {
	var docker archive
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			if docker.digest == "" {
				return archive{}, errors.New("it has neither index.json nor manifest.json")
			}
			return docker, nil
		} else if err != nil {
			return archive{}, err
		}
		member := path.Clean(h.Name)
		if member != "index.json" && member != "manifest.json" {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(r, indexMax))
		if err != nil {
			return archive{}, err
		}
		sum := sha256.Sum256(b)
		a := archive{digest: hex.EncodeToString(sum[:])}
		if member == "manifest.json" {
			var images []struct{ RepoTags []string }
			if err := json.Unmarshal(b, &images); err != nil {
				return archive{}, fmt.Errorf("%s: %w", member, err)
			}
			for _, i := range images {
				a.names = append(a.names, i.RepoTags...)
			}
			docker = a
			continue
		}
		var index struct {
			Manifests []struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"manifests"`
		}
		if err := json.Unmarshal(b, &index); err != nil {
			return archive{}, fmt.Errorf("%s: %w", member, err)
		}
		for _, m := range index.Manifests {
			if name := m.Annotations["io.containerd.image.name"]; name != "" {
				a.names = append(a.names, name)
			}
		}
		return a, nil
	}
}
