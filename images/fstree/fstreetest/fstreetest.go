// Package fstreetest holds what the tests of the file system writers share: a
// tree with every awkward shape, trees made from fuzz input, a comparison of a
// tree with a directory on the host, and the lookup of foreign judges.
//
// It is for tests only and knows no file system format.
package fstreetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// Time is the modification time of the entries of Sample that have none of
// their own: pass it to the writer as its default.
var Time = time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC)

// Noise is incompressible content of any size that costs no memory. The same
// seed gives the same bytes.
type Noise struct {
	Seed   uint64
	Length int64
}

// Size implements fstree.Content.
func (n Noise) Size() int64 { return n.Length }

// Open implements fstree.Content.
func (n Noise) Open() (io.ReadCloser, error) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], n.Seed)
	return io.NopCloser(io.LimitReader(rand.NewChaCha8(key), n.Length)), nil
}

// Zeros is content of zero bytes.
type Zeros int64

// Size implements fstree.Content.
func (z Zeros) Size() int64 { return int64(z) }

// Open implements fstree.Content.
func (z Zeros) Open() (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(zeroReader{}, int64(z))), nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Sample is a tree of about 1,400 entries and 3 MB with what writers get wrong:
// empty files and directories, sizes around block boundaries, holes, equal
// files, a directory of 1,000 entries, a path 60 levels deep, names of 255
// bytes and of other alphabets, short and long links, owners above 65535, all
// mode bits, and times before and after 2038.
func Sample(t testing.TB) *fstree.Tree {
	t.Helper()
	tree := new(fstree.Tree)
	add := func(e fstree.Entry) {
		t.Helper()
		if err := tree.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	file := func(p string, c fstree.Content) {
		add(fstree.Entry{Path: p, Type: fstree.File, Mode: 0o644, Content: c})
	}
	link := func(p, to string) { add(fstree.Entry{Path: p, Type: fstree.Symlink, Mode: 0o777, Link: to}) }

	for _, size := range []int64{0, 1, 59, 60, 61, 2047, 2048, 2049, 4095, 4096, 4097, 16384, 131071, 131072, 131073, 262144, 300000} {
		file(fmt.Sprintf("sizes/noise-%d", size), Noise{Seed: uint64(size), Length: size})
		file(fmt.Sprintf("sizes/text-%d", size), fstree.Bytes(bytes.Repeat([]byte("imagectl "), int(size)/9+1)[:size]))
		file(fmt.Sprintf("sizes/zero-%d", size), Zeros(size))
	}
	block := bytes.Repeat([]byte{0xa5}, 131072)
	hole := make([]byte, 131072)
	file("holes/first", fstree.Bytes(append(append([]byte{}, hole...), block...)))
	file("holes/middle", fstree.Bytes(append(append(append([]byte{}, block...), hole...), block...)))
	file("holes/last", fstree.Bytes(append(append([]byte{}, block...), hole...)))
	file("equal/one", Noise{Seed: 7, Length: 200000})
	file("equal/two", Noise{Seed: 7, Length: 200000})
	file("equal/same-size", Noise{Seed: 8, Length: 200000})
	for i := range 1000 {
		file(fmt.Sprintf("many/entry-%04d-with-a-name-of-some-length", i), fstree.Bytes(fmt.Sprintf("%d\n", i)))
	}
	for i := range 200 {
		add(fstree.Entry{Path: fmt.Sprintf("mixed/dir-%03d", i), Mode: 0o755})
		link(fmt.Sprintf("mixed/link-%03d", i), fmt.Sprintf("dir-%03d", i))
	}
	file(strings.Repeat("d/", 60)+"leaf", fstree.Bytes("deep\n"))
	file("names/"+strings.Repeat("n", 255), fstree.Bytes("long name\n"))
	file("names/ünï-日本", fstree.Bytes("utf-8\n"))
	file("names/with space\nand newline", fstree.Bytes("odd\n"))
	file("names/\xff\xfe", fstree.Bytes("not utf-8\n"))
	for _, n := range []int{1, 59, 60, 61, 1000, 3949} {
		link(fmt.Sprintf("links/%d", n), strings.Repeat("t", n))
	}
	// 3949 is the most that btrfs holds; the others go to 4095.
	link("links/dangling", "../no/such/file")
	add(fstree.Entry{Path: "modes/setuid", Type: fstree.File, Mode: 0o4755, Content: fstree.Bytes("x")})
	add(fstree.Entry{Path: "modes/setgid", Type: fstree.File, Mode: 0o2755, Content: fstree.Bytes("x")})
	add(fstree.Entry{Path: "modes/none", Type: fstree.File, Mode: 0, Content: fstree.Bytes("x")})
	add(fstree.Entry{Path: "modes/sticky", Mode: 0o1777})
	add(fstree.Entry{Path: "owners/core", Type: fstree.File, Mode: 0o600, UID: 500, GID: 500, Content: fstree.Bytes("core\n")})
	add(fstree.Entry{Path: "owners/big", UID: 70000, GID: 4294967294, Mode: 0o700})
	add(fstree.Entry{Path: "owners/link", Type: fstree.Symlink, UID: 500, GID: 70000, Mode: 0o777, Link: "core"})
	add(fstree.Entry{Path: "times/1970", Type: fstree.File, Mode: 0o644, ModTime: time.Unix(1, 0), Content: fstree.Bytes("old\n")})
	add(fstree.Entry{Path: "times/2040", Type: fstree.File, Mode: 0o644, ModTime: time.Unix(2208988800, 0), Content: fstree.Bytes("new\n")})
	add(fstree.Entry{Path: "empty", Mode: 0o755})
	return tree
}

// Shape makes a tree from fuzz input: every byte is one decision. It stays
// below 300 entries and 4 MB.
func Shape(data []byte) *fstree.Tree {
	tree := new(fstree.Tree)
	dirs := []string{""}
	var total int64
	for i := 0; i+2 < len(data) && i < 900; i += 3 {
		kind, where, arg := data[i], data[i+1], data[i+2]
		name := fmt.Sprintf("%s%d-%s", dirs[int(where)%len(dirs)], i, strings.Repeat("n", int(arg)%240))
		// Adding cannot fail: the counter makes each path new and clean.
		switch kind % 4 {
		case 0:
			_ = tree.AddDir(name, 0o700|uint32(arg))
			dirs = append(dirs, name+"/")
		case 1:
			_ = tree.AddSymlink(name, strings.Repeat("l", 1+int(arg)*16))
		case 2:
			size := int64(arg) * int64(arg)
			if kind >= 128 {
				size *= 8
			}
			if total += size; total > 4<<20 {
				size = 0
			}
			_ = tree.Add(fstree.Entry{Path: name, Type: fstree.File, Mode: 0o600, UID: uint32(kind) << 12,
				Content: Noise{Seed: uint64(kind), Length: size}})
		case 3:
			_ = tree.AddFile(name, 0o644, Zeros(int64(arg)*4096+int64(where)))
		}
	}
	return tree
}

// Size is the number of content bytes in the tree.
func Size(tree *fstree.Tree) int64 {
	var n int64
	for _, e := range tree.Entries() {
		if e.Type == fstree.File {
			n += e.Content.Size()
		}
	}
	return n
}

// Except is what Compare leaves out.
type Except struct {
	// Root: the judge unpacks into a directory that is there already.
	Root bool
	// Names must be there besides those of the tree (lost+found).
	Names []string
	// Links: the judge restores neither times nor owners of symbolic links.
	Links bool
	// DirTimes: the judge does not restore the times of directories.
	DirTimes bool
	// Metadata: the judge restores neither modes nor times nor owners.
	Metadata bool
	// SpecialBits: the judge does not restore set-uid, set-gid and sticky.
	SpecialBits bool
}

// Compare fails the test for each difference between the tree and a directory
// of the host: names, types, modes, owners, times, targets and content. What
// only root can restore (owners, set-uid, set-gid) and read (files of mode 0)
// it compares for root only.
func Compare(t testing.TB, tree *fstree.Tree, dir string, except Except) {
	t.Helper()
	wanted := map[string]fstree.Entry{}
	for _, e := range tree.Entries() {
		wanted[e.Path] = e
	}
	for _, p := range except.Names {
		if _, err := os.Lstat(filepath.Join(dir, p)); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	seen := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		for _, x := range except.Names {
			if rel == x {
				return fs.SkipDir
			}
		}
		e, ok := wanted[rel]
		if !ok {
			t.Errorf("%q is there but not in the tree", rel)
			return nil
		}
		seen++
		if rel == "." && except.Root {
			return nil
		}
		if diff := compareEntry(e, p, except); diff != "" {
			t.Errorf("%.80q: %s", rel, diff)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if seen != len(wanted) {
		t.Errorf("%d of %d entries are there", seen, len(wanted))
	}
}

func compareEntry(e fstree.Entry, p string, except Except) string {
	var st syscall.Stat_t
	if err := syscall.Lstat(p, &st); err != nil {
		return err.Error()
	}
	kinds := map[fstree.Type]uint32{fstree.Dir: syscall.S_IFDIR, fstree.File: syscall.S_IFREG, fstree.Symlink: syscall.S_IFLNK}
	if got, want := st.Mode&syscall.S_IFMT, kinds[e.Type]; got != want {
		return fmt.Sprintf("type %o, want %o", got, want)
	}
	root := os.Getuid() == 0
	if except.Metadata {
		return compareContent(e, p, &st)
	}
	mask := ^uint32(0)
	if except.SpecialBits || e.Type == fstree.File && !root {
		mask &^= syscall.S_ISUID | syscall.S_ISGID | syscall.S_ISVTX
	}
	if got, want := st.Mode&mask, (kinds[e.Type]|e.Mode)&mask; got != want {
		return fmt.Sprintf("mode %o, want %o", got, want)
	}
	if root && !(e.Type == fstree.Symlink && except.Links) && (st.Uid != e.UID || st.Gid != e.GID) {
		return fmt.Sprintf("owner %d:%d, want %d:%d", st.Uid, st.Gid, e.UID, e.GID)
	}
	noTime := e.Type == fstree.Symlink && except.Links || e.Type == fstree.Dir && except.DirTimes
	if got, want := st.Mtim.Sec, e.Unix(Time); got != want && !noTime {
		return fmt.Sprintf("modification time %d, want %d", got, want)
	}
	if !root && e.Mode&0o400 == 0 && e.Type == fstree.File {
		return ""
	}
	return compareContent(e, p, &st)
}

func compareContent(e fstree.Entry, p string, st *syscall.Stat_t) string {
	switch e.Type {
	case fstree.Symlink:
		if got, err := os.Readlink(p); err != nil || got != e.Link {
			return fmt.Sprintf("target %q (%v), want %q", got, err, e.Link)
		}
	case fstree.File:
		if st.Size != e.Content.Size() {
			return fmt.Sprintf("%d bytes, want %d", st.Size, e.Content.Size())
		}
		got, err := digest(os.Open(p))
		if err != nil {
			return err.Error()
		}
		want, err := digest(e.Content.Open())
		if err != nil {
			return err.Error()
		}
		if got != want {
			return "other content"
		}
	}
	return ""
}

func digest(r io.ReadCloser, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	_, err = io.Copy(h, r)
	return string(h.Sum(nil)), err
}

// Scratch is a directory that does not exist yet, to unpack into. Whatever modes its
// directories get, it goes away with the test, also when nobody is root.
func Scratch(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = os.Chmod(path, 0o700)
			}
			return err // what is left shows when the test's directory is removed
		})
	})
	return dir
}

// Run runs a judge and returns its output. It fails the test, with the line
// that installs the judge, when it is missing, and with its output when it
// does not agree.
func Run(t testing.TB, aptPackage string, argv ...string) string {
	t.Helper()
	tool, err := Tool(argv[0], aptPackage)
	if err != nil {
		t.Fatal(err)
	}
	// Unpackers obey the umask, unless they run as root.
	cmd := exec.Command("sh", append([]string{"-c", `umask 022 && exec "$0" "$@"`, tool}, argv[1:]...)...)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// Tool finds a judge, also where only root's PATH leads.
func Tool(name, aptPackage string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if p, err := exec.LookPath(candidate); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s judges this test and is not installed: apt-get install -y %s", name, aptPackage)
}

// Mount mounts an image (as root, through a loop device) until the test ends
// and returns the mount point.
func Mount(t testing.TB, image, fstype, options string) string {
	t.Helper()
	dir := t.TempDir()
	Run(t, "mount", "mount", "-t", fstype, "-o", "loop,"+options, image, dir)
	t.Cleanup(func() { Run(t, "mount", "umount", dir) })
	return dir
}
