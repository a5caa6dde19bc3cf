package inventory_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/imagectl/imagectl/images/inventory"
)

// self is this test's own program.
func self(t *testing.T) []byte {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func archive(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		w.Write(content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func zstandard(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func squashed(t *testing.T, program []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tree/usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tree/usr/bin/program"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("program", filepath.Join(dir, "tree/usr/bin/link")); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "x.raw")
	if msg, err := exec.Command("mksquashfs", filepath.Join(dir, "tree"), out, "-quiet", "-comp", "zstd").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// made is a file system with a program in it, by a command that ends in the image
// and the tree.
func made(t *testing.T, program []byte, argv ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	tree, out := filepath.Join(dir, "tree"), filepath.Join(dir, "x.raw")
	if err := os.MkdirAll(filepath.Join(tree, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "usr/bin/program"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command(argv[0], append(argv[1:], out, tree)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", argv[0], err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWhatIsNotReadIsSaid: a list that is empty for that reason says so.
func TestWhatIsNotReadIsSaid(t *testing.T) {
	t.Parallel()
	for want, content := range map[string][]byte{
		"imagectl does not read EROFS images that are compressed": made(t, bytes.Repeat([]byte("program"), 1<<16), "mkfs.erofs", "--quiet", "-zlz4hc"),
		"imagectl does not read ext4 images":                      append(make([]byte, 1080), "\x53\xef\x01\x00"...),
		"imagectl does not read btrfs images":                     append(make([]byte, 65600), "_BHRfS_M"...),
		"imagectl does not read GPT images":                       append(make([]byte, 512), "EFI PART"...),
	} {
		file := filepath.Join(t.TempDir(), "input")
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := inventory.Read(t.Context(), file, t.TempDir())
		if err != nil || got.Unread != want || got.Programs != nil {
			t.Errorf("got %+v, %v, want that %s", got, err, want)
		}
	}
}

func TestProgramsAreFoundWhereverTheyLie(t *testing.T) {
	t.Parallel()
	program := self(t)
	text := []byte("no program")
	for name, tc := range map[string]struct {
		content []byte
		want    []string
	}{
		"a program":                            {program, []string{""}},
		"a text":                               {text, nil},
		"nothing":                              {nil, nil},
		"a damaged program":                    {program[:4096], nil},
		"a tar.gz":                             {gzipped(archive(t, map[string][]byte{"x/a": program, "x/b": text, "./c": program})), []string{"c", "x/a"}},
		"an extension":                         {squashed(t, program), []string{"usr/bin/program"}},
		"an EROFS extension":                   {made(t, program, "mkfs.erofs", "--quiet"), []string{"usr/bin/program"}},
		"an image with layers":                 {archive(t, map[string][]byte{"index.json": []byte("{}"), "blobs/1": archive(t, map[string][]byte{"bin/p": program}), "blobs/2": gzipped(archive(t, map[string][]byte{"/q": program})), "blobs/3": zstandard(t, archive(t, map[string][]byte{"r": program}))}), []string{"blobs/1/bin/p", "blobs/2/q", "blobs/3/r"}},
		"a gzip that is no tar":                {gzipped(text), nil},
		"a file that looks like gzip in a tar": {archive(t, map[string][]byte{"x": []byte("\x1f\x8b\x08\x00not really")}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "input")
			if err := os.WriteFile(file, tc.content, 0o644); err != nil {
				t.Fatal(err)
			}
			scratch := t.TempDir()
			found, err := inventory.Read(context.Background(), file, scratch)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			if found.Unread != "" {
				t.Errorf("it was not read: %s", found.Unread)
			}
			for _, p := range found.Programs {
				got = append(got, p.Path)
				if p.Main.Path != "github.com/imagectl/imagectl" || !strings.HasPrefix(p.Go, "go1.") {
					t.Errorf("got %+v", p)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if left, _ := os.ReadDir(scratch); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestDamagedArchivesAreErrors(t *testing.T) {
	t.Parallel()
	whole := gzipped(archive(t, map[string][]byte{"a": self(t)}))
	file := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(file, whole[:len(whole)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := inventory.Read(context.Background(), file, t.TempDir()); err == nil {
		t.Errorf("half an archive: got %v", got)
	}
}
