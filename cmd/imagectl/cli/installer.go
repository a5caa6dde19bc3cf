package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/render"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/medium"
	"github.com/imagectl/imagectl/pxe/boot"
)

// addInstaller makes what iPXE loads behind Flatcar's initial RAM file system: the first
// Ignition config with the agent. With that in its memory a machine needs no answer of
// the server that started it any more, which may have died meanwhile: Ignition would ask
// one address for ever. Then the agent asks all servers. It returns false where the
// release loses such files.
func (s *site) addInstaller(node, links []byte) (boot.Blob, bool, error) {
	if losesArchives(s.plan.Flatcar) {
		return boot.Blob{}, false, nil
	}
	const agent = "imagectl.raw"
	config, err := render.Installer(render.InstallerInput{NodeConfig: node, Links: links, AgentPath: "/oem/" + agent})
	if err != nil {
		return boot.Blob{}, false, err
	}
	extension, err := os.ReadFile(s.files[s.agent.SHA256])
	if err != nil {
		return boot.Blob{}, false, fmt.Errorf("reading the agent's extension: %w", err)
	}
	oem := new(fstree.Tree)
	for _, f := range []struct {
		path    string
		content []byte
	}{{"config.ign", config}, {agent, extension}} {
		if err := oem.AddFile(f.path, 0o644, fstree.Bytes(f.content)); err != nil {
			return boot.Blob{}, false, err
		}
	}
	b, err := s.addArchive(s.plan.Cluster+"-installer", oem)
	return b, err == nil, err
}

// addArchive makes files of the OEM directory servable as what is loaded behind Flatcar's
// initial RAM file system.
func (s *site) addArchive(name string, oem *fstree.Tree) (boot.Blob, error) {
	archive, err := medium.Archive(oem, time.Time{})
	if err != nil {
		return boot.Blob{}, fmt.Errorf("archiving the files of %s: %w", name, err)
	}
	sum := sha256.Sum256(archive)
	b := boot.Blob{Name: name + ".cpio.gz", SHA256: hex.EncodeToString(sum[:]), Size: int64(len(archive))}
	s.made[b.SHA256] = archive
	return b, nil
}

// losesArchives tells of the releases that look into the first archive only
// (flatcar/Flatcar#2023).
func losesArchives(f plan.Flatcar) bool {
	major, _, _ := strings.Cut(f.Version, ".")
	n, err := strconv.Atoi(major)
	switch f.Channel {
	case "alpha":
		return err == nil && n >= 4487 && n < 4669
	case "beta":
		return err == nil && n >= 4515 && n < 4628
	}
	return false
}
