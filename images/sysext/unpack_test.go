package sysext_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/sysext"
)

func archive(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("a", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func list(b []byte) ([]string, error) {
	var got []string
	err := sysext.Unpack(bytes.NewReader(b), func(m sysext.Member, content io.Reader) error {
		b, err := io.ReadAll(content)
		got = append(got, fmt.Sprintf("%d %s %o %s%s", m.Kind, m.Path, m.Mode, m.Link, b))
		return err
	})
	return got, err
}

func TestUnpackReadsEveryCompression(t *testing.T) {
	t.Parallel()
	plain := archive(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./usr/bin/runsc", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 3},
		tar.Header{Name: "usr/bin/x", Typeflag: tar.TypeSymlink, Linkname: "../lib/x"},
		tar.Header{Name: "usr/bin/y", Typeflag: tar.TypeLink, Linkname: "./usr/bin/runsc", Mode: 0o755},
	)
	want := []string{"1 usr/bin 755 ", "0 usr/bin/runsc 4755 aaa", "2 usr/bin/x 0 ../lib/x", "3 usr/bin/y 755 usr/bin/runsc"}
	file := filepath.Join(t.TempDir(), "plain.tar")
	if err := os.WriteFile(file, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"cat", "gzip", "bzip2", "xz", "zstd"} {
		args := []string{"-c", file}
		if program == "cat" {
			args = args[1:]
		}
		b, err := exec.Command(program, args...).Output()
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		if got, err := list(b); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q, %v", program, got, err)
		}
		if got, err := list(b[:len(b)/4+7]); err == nil {
			t.Errorf("%s: accepted when it was cut off: %q", program, got)
		}
	}
}

func TestUnpackRefusesWhatLeadsElsewhere(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]tar.Header{
		"an absolute path":   {Name: "/etc/passwd", Typeflag: tar.TypeReg},
		"a path upwards":     {Name: "usr/../../etc/passwd", Typeflag: tar.TypeReg},
		"a hard link out":    {Name: "usr/x", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"},
		"a device":           {Name: "dev/sda", Typeflag: tar.TypeBlock},
		"an enormous member": {Name: "usr/x", Typeflag: tar.TypeReg, Size: 0},
	} {
		b := archive(t, h)
		if name == "an enormous member" {
			copy(b[124:136], "77777777777\x00")
			sum := 0
			copy(b[148:156], "        ")
			for _, c := range b[:512] {
				sum += int(c)
			}
			copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
		}
		if got, err := list(b); err == nil {
			t.Errorf("%s: accepted as %q", name, got)
		}
	}
}
