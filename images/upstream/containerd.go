package upstream

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Paths of what adds runtimes to containerd.
const (
	ContainerdConfigPath = "usr/share/imagectl/containerd/config.toml"
	ContainerdDropInPath = "usr/lib/systemd/system/containerd.service.d/10-imagectl-runtimes.conf"
)

// ContainerdDropIn has containerd read the configuration above: Flatcar's unit
// passes this variable to --config.
func ContainerdDropIn() string {
	return "[Service]\nEnvironment=CONTAINERD_CONFIG=/" + ContainerdConfigPath + "\n"
}

// flatcarConfig is what Flatcar's own /usr/share/containerd/config.toml sets, which
// is not read besides ours: containerd 1.7 (LTS) replaces a plugin's whole section by
// an imported file's, so that an import could add no runtime without losing runc's
// settings. Version 2 of the format is understood by containerd 1.7 and 2. Where mirrors
// of registries are is ours: Flatcar's says nothing, and containerd 1.7 then looks nowhere.
const flatcarConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = -999

[grpc]
address = "/run/containerd/containerd.sock"
uid = 0
gid = 0

[plugins."io.containerd.grpc.v1.cri"]
enable_selinux = true

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
`

// ContainerdBase is containerd's configuration with runc alone.
func ContainerdBase() string {
	return "# Made by imagectl: Flatcar's configuration, and where mirrors of registries are.\n" + flatcarConfig
}

// ContainerdConfig is containerd's configuration with runc and the runtimes, which
// come in order of their names. Two of one name, or one called runc, are an error.
func ContainerdConfig(runtimes []Runtime) (string, error) {
	runtimes = slices.Clone(runtimes)
	slices.SortFunc(runtimes, func(a, b Runtime) int { return strings.Compare(a.Name, b.Name) })
	var b strings.Builder
	b.WriteString("# Made by imagectl: Flatcar's configuration and the runtimes of this role.\n" + flatcarConfig)
	last := "runc"
	for _, r := range runtimes {
		if r.Name == last || r.Name == "runc" {
			return "", fmt.Errorf("configuring containerd: there are two runtimes called %s", r.Name)
		}
		last = r.Name
		table := `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.` + strconv.Quote(r.Name)
		fmt.Fprintf(&b, "\n%s]\nruntime_type = %s\n", table, strconv.Quote(r.Type))
		if len(r.Options) > 0 {
			fmt.Fprintf(&b, "\n%s.options]\n", table)
		}
		for _, o := range r.Options {
			value := strconv.FormatBool(o.Flag)
			if o.Text != "" {
				value = strconv.Quote(o.Text)
			}
			fmt.Fprintf(&b, "%s = %s\n", o.Key, value)
		}
	}
	return b.String(), nil
}
