package sysext

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// ErrNotMerged is wrapped when systemd-sysext would leave an extension out, or
// would merge it and break the node.
var ErrNotMerged = errors.New("a node could not use this extension")

var extensionName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

// Host is the system that an extension is merged into.
type Host struct {
	// Arch is amd64 or arm64.
	Arch string
	// Flatcar is the release's version, such as 4593.2.5.
	Flatcar string
}

// Contents is what the image of an extension holds.
type Contents struct {
	Name string
	// Unread says what was not examined and why. It is empty when all was.
	Unread string
	// Files are all that are not directories, Dirs the directories, both sorted
	// and relative to the root, such as usr/bin/runsc; none when they were not read.
	Files, Dirs []string
}

// Inspect examines the image of an extension that will be called NAME.raw on the
// nodes: that the host's kernel can mount it, that systemd-sysext there would merge
// it, and that merging it does not take something from the host. Every refusal
// wraps ErrNotMerged.
//
// Of squashfs and EROFS images it reads names and extension-release. Of ext4, btrfs
// and GPT images it knows only that they are some, and says so in Unread.
func Inspect(path, name string, host Host) (Contents, error) {
	c, err := inspect(path, name, host)
	if err != nil {
		return Contents{}, fmt.Errorf("examining extension %s (%s): %w", name, path, err)
	}
	return c, nil
}

func inspect(path, name string, host Host) (c Contents, err error) {
	if !extensionName.MatchString(name) {
		return Contents{}, fmt.Errorf("%w: %q is no name for an extension", ErrNotMerged, name)
	}
	f, err := os.Open(path)
	if err != nil {
		return Contents{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Contents{}, err
	}
	// go-diskfs 1.9.4 indexes with what it reads: a damaged squashfs makes it panic.
	defer func() {
		if p := recover(); p != nil {
			c, err = Contents{}, fmt.Errorf("%w: it is damaged: reading it: %v", ErrNotMerged, p)
		}
	}()
	c = Contents{Name: name}
	content, why, err := open(f, st.Size(), host)
	if err != nil {
		return Contents{}, err
	}
	if content == nil {
		c.Unread = why
		return c, nil
	}
	err = c.read(content, host)
	return c, err
}

// read lists the files and judges them.
func (c *Contents) read(content fs.FS, host Host) error {
	err := fs.WalkDir(content, ".", func(p string, d fs.DirEntry, err error) error {
		switch p = strings.TrimPrefix(p, "/"); {
		case err != nil:
			return err
		case p == "." || p == "":
		case d.IsDir():
			c.Dirs = append(c.Dirs, p)
		default:
			c.Files = append(c.Files, p)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: listing its files: %w", ErrNotMerged, err)
	}
	slices.Sort(c.Files)
	slices.Sort(c.Dirs)
	at := releasePath(c.Name)
	if !slices.Contains(c.Files, at) {
		return fmt.Errorf("%w: it holds no %s%s; its name in cluster.yaml must be the one it was built for", ErrNotMerged, at, c.otherRelease())
	}
	if err := c.judgePaths(); err != nil {
		return err
	}
	release, err := readRelease(content, at)
	if errors.Is(err, errUnread) {
		c.Unread = err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	return judgeRelease(release, host)
}

// otherRelease names the extension-release files that are there instead.
func (c *Contents) otherRelease() string {
	var have []string
	for _, f := range c.Files {
		if path.Dir(f) == path.Dir(releasePath("x")) {
			have = append(have, path.Base(f))
		}
	}
	if len(have) == 0 {
		return ""
	}
	return ", it holds " + strings.Join(have, ", ")
}

// judgePaths refuses what would not reach the node, or would take something away
// from it.
func (c *Contents) judgePaths() error {
	var lost []string
	for _, f := range c.Files {
		top, _, _ := strings.Cut(f, "/")
		switch {
		case top == "opt":
			return fmt.Errorf("%w: it holds %s, and an opt/ in an extension makes the node's /opt read-only, where CNI plugins are written; put its files below usr/", ErrNotMerged, f)
		case top != "usr":
			lost = append(lost, f)
		case f == "usr/lib/os-release":
			return fmt.Errorf("%w: it holds %s, which systemd-sysext forbids", ErrNotMerged, f)
		case slices.Contains([]string{"usr", "usr/bin", "usr/lib", "usr/libexec", "usr/share"}, f):
			return fmt.Errorf("%w: its %s is a file or a link and would hide the node's directory", ErrNotMerged, f)
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("%w: it holds files outside usr/, which are not merged: %s", ErrNotMerged, few(lost))
	}
	return nil
}

// few is the first of many.
func few(s []string) string {
	const n = 5
	if len(s) > n {
		return fmt.Sprintf("%s and %d more", strings.Join(s[:n], ", "), len(s)-n)
	}
	return strings.Join(s, ", ")
}
