package sysext

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	gosquash "github.com/diskfs/go-diskfs/filesystem/squashfs"
)

// ErrNotMerged is wrapped when systemd-sysext would leave an extension out.
var ErrNotMerged = errors.New("the node would not merge this extension")

var extensionName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

// Inspect examines the image of a user's extension that will be called NAME.raw
// on the nodes. Of a squashfs it reads extension-release and judges it as
// systemd-sysext does on Flatcar. Of ext4, btrfs, EROFS and GPT images it checks
// only that they are one of these: their content is not read.
func Inspect(path, name, arch string) error {
	if err := inspect(path, name, arch); err != nil {
		return fmt.Errorf("examining extension %s (%s): %w", name, path, err)
	}
	return nil
}

func inspect(path, name, arch string) error {
	if !extensionName.MatchString(name) {
		return fmt.Errorf("%w: %q is no name for an extension", ErrNotMerged, name)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	kind, err := sniff(f)
	if err != nil {
		return err
	}
	switch kind {
	case "":
		return fmt.Errorf("%w: it is no squashfs, ext4, btrfs, EROFS or GPT image", ErrNotMerged)
	case "squashfs":
	default:
		return nil
	}
	fs, err := gosquash.Read(file.New(f, true), st.Size(), 0, 0)
	if err != nil {
		return fmt.Errorf("reading squashfs: %w", err)
	}
	release, err := fs.ReadFile(releasePath(name))
	if err != nil {
		return fmt.Errorf("%w: it holds no %s (%w); the name in cluster.yaml must be the one it was built for", ErrNotMerged, releasePath(name), err)
	}
	return judgeRelease(release, arch)
}

// sniff tells a file system from its magic number.
func sniff(r io.ReaderAt) (string, error) {
	for _, m := range []struct {
		kind  string
		at    int64
		magic string
	}{
		{"squashfs", 0, "hsqs"},
		{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
		{"ext4", 1080, "\x53\xef"},
		{"btrfs", 65600, "_BHRfS_M"},
		{"gpt", 512, "EFI PART"},
	} {
		b := make([]byte, len(m.magic))
		if _, err := r.ReadAt(b, m.at); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if string(b) == m.magic {
			return m.kind, nil
		}
	}
	return "", nil
}

// judgeRelease applies the rules of flatcar.md section 7.1.
func judgeRelease(release []byte, arch string) error {
	keys := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(release)); s.Scan(); {
		if k, v, ok := strings.Cut(strings.TrimSpace(s.Text()), "="); ok {
			keys[k] = strings.Trim(v, `"'`)
		}
	}
	switch id := keys["ID"]; {
	case id == "_any":
	case id != "flatcar":
		return fmt.Errorf("%w: its extension-release says ID=%s, want _any or flatcar", ErrNotMerged, id)
	case keys["SYSEXT_LEVEL"] == "" && keys["VERSION_ID"] == "":
		return fmt.Errorf("%w: with ID=flatcar its extension-release needs SYSEXT_LEVEL=1.0", ErrNotMerged)
	case keys["SYSEXT_LEVEL"] != "" && keys["SYSEXT_LEVEL"] != "1.0":
		return fmt.Errorf("%w: its extension-release says SYSEXT_LEVEL=%s, Flatcar has 1.0", ErrNotMerged, keys["SYSEXT_LEVEL"])
	}
	want, err := systemdArch(arch)
	if err != nil {
		return err
	}
	if a := keys["ARCHITECTURE"]; a != "" && a != want {
		return fmt.Errorf("%w: it is for %s, the cluster for %s", ErrNotMerged, a, want)
	}
	return nil
}
