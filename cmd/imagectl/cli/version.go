package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionReport is the JSON form.
type versionReport struct {
	// Version is that of the commit, with +dirty when files differed from it.
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func newVersion(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Say which commit this program was built from",
		Example: "  imagectl version\n  imagectl version -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			v := versionReport{Version: buildVersion(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			if f == formatJSON {
				return writeJSON(g.stdio.Out, v)
			}
			_, err := fmt.Fprintf(g.stdio.Out, "imagectl %s, %s, %s/%s\n", v.Version, v.Go, v.OS, v.Arch)
			return err
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

// buildVersion is the commit, as the Go toolchain recorded it; a build outside a
// checkout has none.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "unknown revision"
	}
	return info.Main.Version
}
