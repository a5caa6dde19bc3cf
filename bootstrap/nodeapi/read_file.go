package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// fileMax is how much of a file is read, in bytes.
const fileMax = 8 << 20

// Files are patterns (path.Match) of what may be read. None may ever fit a key or a token: not
// /etc/imagectl/node.json, which may hold a token; no .netdev file of systemd-networkd, which
// may hold a key of WireGuard; no hosts.toml of containerd and no /etc/imagectl/proxy.env, which may hold passwords; nothing
// below /etc/kubernetes but the manifests of static pods.
func Files() []string {
	return []string{
		"/etc/containerd/config.toml",
		"/etc/etcd/etcd.yaml",
		"/etc/flatcar/update.conf",
		"/etc/hostname",
		"/etc/hosts",
		"/etc/kubernetes/manifests/*.yaml",
		"/etc/systemd/network/*.link",
		"/etc/systemd/network/*.network",
		"/etc/systemd/resolved.conf",
		"/etc/systemd/resolved.conf.d/*.conf",
		"/etc/systemd/timesyncd.conf",
		"/etc/systemd/timesyncd.conf.d/*.conf",
		"/proc/cmdline",
		"/proc/cpuinfo",
		"/proc/interrupts",
		"/proc/loadavg",
		"/proc/meminfo",
		"/proc/modules",
		"/proc/pressure/*",
		"/proc/stat",
		"/proc/swaps",
		"/proc/version",
		"/proc/vmstat",
		"/run/systemd/resolve/resolv.conf",
		"/run/systemd/resolve/stub-resolv.conf",
		"/sys/devices/virtual/dmi/id/bios_version",
		"/sys/devices/virtual/dmi/id/product_name",
		"/sys/devices/virtual/dmi/id/sys_vendor",
		"/usr/lib/os-release",
		"/var/lib/kubelet/config.yaml",
	}
}

// readable says whether a path may be read.
func readable(name string) bool {
	if path.Clean(name) != name {
		return false
	}
	for _, pattern := range Files() {
		if ok, err := path.Match(pattern, name); err == nil && ok {
			return true
		}
	}
	return false
}

// ReadFile implements apiconnect.NodeServiceHandler.
func (s *service) ReadFile(ctx context.Context, req *connect.Request[api.ReadFileRequest], out *connect.ServerStream[api.ReadFileResponse]) error {
	name := req.Msg.GetPath()
	if !readable(name) {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%q is not among the files that a node shows; docs/node-api.md has the list", cut(name, 256)))
	}
	leave, err := enter(s.gates.files, "read files")
	if err != nil {
		return err
	}
	defer leave()
	if err := s.record(ctx, "file-read", name); err != nil {
		return err
	}
	f, err := s.node.System().Open(name)
	if err != nil {
		return ended(ctx, err)
	}
	defer f.Close()
	w := &chunks{ctx: ctx, send: func(b []byte) error { return out.Send(&api.ReadFileResponse{Chunk: b}) }}
	_, err = io.Copy(w, io.LimitReader(f, fileMax))
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		return ended(ctx, fmt.Errorf("reading %s: %w", name, err))
	}
	var more [1]byte
	if n, err := f.Read(more[:]); n > 0 {
		return out.Send(&api.ReadFileResponse{Truncated: true})
	} else if err != nil && !errors.Is(err, io.EOF) {
		return ended(ctx, fmt.Errorf("reading %s: %w", name, err))
	}
	return nil
}
