package agent

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/api"
)

const (
	// networkList names the files of the network that this node has, one a line
	// (butane/render.NetworkList).
	networkList = "/etc/imagectl/network.list"
	// networkOwed names the files whose readers have to be told yet.
	networkOwed = StateDir + "/network.owed"
	// networkBoot is the boot during which files of links have changed.
	networkBoot = StateDir + "/network.boot"

	// proxyEnv has the proxy's password (butane/render).
	proxyEnv = "/etc/imagectl/proxy.env"

	linksDir   = "/etc/systemd/network/"
	unitsDir   = "/etc/systemd/system/"
	bootIDPath = "/proc/sys/kernel/random/boot_id"
)

// reader is a unit that reads some files when it starts.
type reader struct {
	unit  string
	files []string // beginnings of paths
}

// networkReaders are in the order in which they start again. containerd's containers and
// kubelet's pods live on.
func networkReaders() []reader {
	return []reader{
		{"systemd-resolved.service", []string{"/etc/systemd/resolved.conf.d/"}},
		{"systemd-timesyncd.service", []string{"/etc/systemd/timesyncd.conf.d/"}},
		{containerd, []string{unitsDir + "containerd.service.d/", "/etc/imagectl/containerd.toml", proxyEnv}},
		{"kubelet.service", []string{unitsDir + "kubelet.service.d/", proxyEnv}},
	}
}

// networkFiles keeps the files of the node's network, and tells whoever has read the old
// ones. What containerd knows of registries it reads with each request. Links stay as they
// are until the machine starts again: a mistake in them would cut all nodes off at once. Then
// keepLinks watches what becomes of them.
func (n *node) networkFiles(run *api.Run) Step {
	wanted := networkFilesOf(run)
	return Step{
		Name: "network",
		Observe: func(context.Context) (bool, string, error) {
			n.linking.Lock()
			defer n.linking.Unlock()
			want, _, err := n.linksKept(wanted)
			if err != nil {
				return false, "", err
			}
			wrong, stale, err := n.networkDiffers(want)
			if err != nil {
				return false, "", err
			}
			owed, err := n.Host.Exists(networkOwed)
			switch {
			case len(wrong) > 0:
				return false, wrong[0].path + " is missing or differs", err
			case len(stale) > 0:
				return false, stale[0] + " is of a network that cluster.yaml does not want any more", err
			}
			return !owed, "services have not read the network's files yet", err
		},
		Act: func(ctx context.Context) error {
			n.linking.Lock()
			defer n.linking.Unlock()
			want, back, err := n.linksKept(wanted)
			if err != nil {
				return err
			}
			wrong, stale, err := n.networkDiffers(want)
			if err != nil {
				return err
			}
			owed, err := n.Host.ReadFile(networkOwed)
			if err != nil && !notExist(err) {
				return err
			}
			paths := append(strings.Fields(string(owed)), stale...)
			for _, f := range wrong {
				paths = append(paths, f.path)
			}
			slices.Sort(paths)
			paths = slices.Compact(paths)
			// Said before it is done, so that a death in between leaves nobody untold.
			if err := n.write(file{networkOwed, []byte(strings.Join(paths, "\n") + "\n"), 0o600}); err != nil {
				return err
			}
			if slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(p, linksDir) }) {
				boot, err := n.Host.ReadFile(bootIDPath)
				if err == nil && !back {
					err = n.noteLinkChange(want, strings.TrimSpace(string(boot)))
				}
				if err == nil {
					err = n.write(file{networkBoot, boot, 0o600})
				}
				if err != nil {
					return err
				}
			}
			if err := n.replaceNetwork(want, wrong, stale); err != nil {
				return err
			}
			if err := n.tellReaders(ctx, paths); err != nil {
				return err
			}
			return n.Host.Remove(networkOwed)
		},
	}
}

// replaceNetwork writes some files and removes others. The list names what is new before it
// is there, and what is old until it is gone, so that no death in between leaves a file that
// nobody knows of.
func (n *node) replaceNetwork(want, wrong []file, stale []string) error {
	list, err := n.Host.ReadFile(networkList)
	if err != nil && !notExist(err) {
		return err
	}
	names := strings.Fields(string(list))
	for _, f := range wrong {
		if f.path != networkList {
			names = append(names, f.path)
		}
	}
	slices.Sort(names)
	all := []byte(strings.Join(slices.Compact(names), "\n") + "\n")
	if err := n.write(file{networkList, all, 0o644}); err != nil {
		return err
	}
	for _, f := range wrong {
		if f.path == networkList {
			continue
		}
		if err := n.write(f); err != nil {
			return err
		}
	}
	for _, p := range stale {
		if p == networkList {
			continue
		}
		if err := n.Host.Remove(p); err != nil {
			return err
		}
	}
	if i := slices.IndexFunc(want, func(f file) bool { return f.path == networkList }); i >= 0 {
		return n.write(want[i])
	}
	return n.Host.Remove(networkList)
}

// networkDiffers compares what this node has with what it shall have.
func (n *node) networkDiffers(want []file) (wrong []file, stale []string, err error) {
	keep := map[string]bool{}
	for _, f := range want {
		if !networkPath(f.path) {
			return nil, nil, fmt.Errorf("the server sent %q as a file of the network, which is none", f.path)
		}
		keep[f.path] = true
		differs, err := n.wrong([]file{f})
		if err == nil && differs == "" {
			var mode fs.FileMode
			if mode, err = n.Host.Mode(f.path); mode != fs.FileMode(f.mode) {
				differs = "mode"
			}
		}
		if err != nil {
			return nil, nil, err
		}
		if differs != "" {
			wrong = append(wrong, f)
		}
	}
	list, err := n.Host.ReadFile(networkList)
	if err != nil && !notExist(err) {
		return nil, nil, err
	}
	for _, p := range strings.Fields(string(list)) {
		if there, err := n.Host.Exists(p); err != nil {
			return nil, nil, err
		} else if there && !keep[p] && networkPath(p) {
			stale = append(stale, p)
		}
	}
	if list != nil && !keep[networkList] {
		stale = append(stale, networkList)
	}
	return wrong, stale, nil
}

// networkPath says whether a file may be one of the network: the list is a file, and names
// what is removed.
func networkPath(p string) bool {
	if strings.Contains(p, "/../") || strings.HasSuffix(p, "/") || strings.ContainsAny(p, " \n\t") {
		return false
	}
	for _, dir := range []string{linksDir + "20-imagectl-", "/etc/containerd/certs.d/", unitsDir + "containerd.service.d/", unitsDir + "kubelet.service.d/",
		"/etc/systemd/resolved.conf.d/", "/etc/systemd/timesyncd.conf.d/"} {
		if strings.HasPrefix(p, dir) {
			return true
		}
	}
	return p == networkList || p == "/etc/imagectl/containerd.toml" || p == proxyEnv
}

// tellReaders starts those again that run and have read one of these files.
func (n *node) tellReaders(ctx context.Context, paths []string) error {
	under := func(dirs ...string) bool {
		return slices.ContainsFunc(paths, func(p string) bool {
			return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(p, d) })
		})
	}
	if under(unitsDir) {
		if err := n.Host.ReloadUnits(ctx); err != nil {
			return err
		}
	}
	for _, r := range networkReaders() {
		if !under(r.files...) {
			continue
		}
		state, err := n.Host.UnitState(ctx, r.unit)
		if err != nil {
			return err
		}
		if state != "active" && state != "activating" && state != "reloading" {
			continue // it reads them when it starts
		}
		if err := n.Host.RestartUnit(ctx, r.unit); err != nil {
			return err
		}
	}
	return nil
}

// networkLinks is done when the machine has started since its links were changed. It comes
// last, for nothing waits for it.
func (n *node) networkLinks() Step {
	return Step{Name: "network-links", Observe: func(context.Context) (bool, string, error) {
		if c, err := n.linkChange(); err != nil {
			return false, "", err
		} else if c != nil && c.Back {
			return false, "", waiting(fmt.Sprintf("with the bonds, VLANs, addresses and routes of cluster.yaml neither the server nor another API server was reached within %s; this machine went back to those before, and keeps them until cluster.yaml says something else", linksProve))
		}
		changed, err := n.Host.ReadFile(networkBoot)
		if notExist(err) {
			return true, "", nil
		} else if err != nil {
			return false, "", err
		}
		now, err := n.Host.ReadFile(bootIDPath)
		if err != nil {
			return false, "", err
		}
		if string(now) == string(changed) {
			return false, "", waiting("bonds, VLANs, addresses or routes have changed, and hold from the next start of this machine on")
		}
		return true, "", n.Host.Remove(networkBoot)
	}}
}
