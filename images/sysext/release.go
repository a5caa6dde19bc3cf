package sysext

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/erofs/go-erofs"
)

// maxRelease bounds an extension-release file, in bytes; real ones have under 1000.
const maxRelease = 64 << 10

// readRelease reads an extension-release file into its variables.
func readRelease(content fs.FS, at string) (map[string]string, error) {
	f, err := content.Open(at)
	if err != nil {
		return nil, fmt.Errorf("%w: reading %s: %w", ErrNotMerged, at, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRelease+1))
	switch {
	case errors.Is(err, erofs.ErrNotImplemented):
		return nil, fmt.Errorf("%w: %s is compressed in its EROFS image", errUnread, at)
	case err != nil:
		return nil, fmt.Errorf("%w: reading %s: %w", ErrNotMerged, at, err)
	case len(b) > maxRelease:
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrNotMerged, at, maxRelease)
	}
	vars := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(k, "#") {
			vars[k] = strings.Trim(v, `"'`)
		}
	}
	return vars, nil
}

// sysextLevel is SYSEXT_LEVEL in Flatcar's os-release (flatcar.md section 7.1).
const sysextLevel = "1.0"

// judgeRelease decides as systemd's extension_release_validate does on Flatcar,
// whose os-release has both SYSEXT_LEVEL and VERSION_ID.
func judgeRelease(release map[string]string, host Host) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: its extension-release says "+format, append([]any{ErrNotMerged}, args...)...)
	}
	want, err := systemdArch(host.Arch)
	if err != nil {
		return err
	}
	if s, ok := release["SYSEXT_SCOPE"]; ok && s != "" && !slices.Contains(strings.Fields(s), "system") {
		return refuse("SYSEXT_SCOPE=%s, want system in it", s)
	}
	if a := release["ARCHITECTURE"]; a != "" && a != "_any" && a != want {
		return refuse("ARCHITECTURE=%s, the machines are %s", a, want)
	}
	id, level, version := release["ID"], release["SYSEXT_LEVEL"], release["VERSION_ID"]
	switch {
	case id == "_any":
	case id == "":
		return refuse("no ID, want _any or flatcar")
	case id != "flatcar":
		return refuse("ID=%s, want _any or flatcar", id)
	case level != "" && level != sysextLevel:
		return refuse("SYSEXT_LEVEL=%s, Flatcar has %s", level, sysextLevel)
	case level != "":
	case version == "":
		return refuse("ID=flatcar and neither SYSEXT_LEVEL nor VERSION_ID; want SYSEXT_LEVEL=%s, which fits every version", sysextLevel)
	case version != host.Flatcar:
		return refuse("VERSION_ID=%s, flatcar.version is %s; SYSEXT_LEVEL=%s would fit every version", version, host.Flatcar, sysextLevel)
	}
	return nil
}
