package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/btrfs"
	"github.com/imagectl/imagectl/images/bzip2"
	"github.com/imagectl/imagectl/images/compress"
	"github.com/imagectl/imagectl/images/disk"
	"github.com/imagectl/imagectl/images/ext4"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/qcow2"
	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/vhd"
	"github.com/imagectl/imagectl/images/vmdk"
)

// jobs are what is measured, by name: from files, the first of which is src,
// into dst. Each runs in a process of its own, so that its memory is its own.
func jobs() map[string]func(ctx context.Context, dst, src *os.File, size int64, more []string) error {
	type job = func(ctx context.Context, dst, src *os.File, size int64, more []string) error
	toQCOW2 := func(c qcow2.Compression) job {
		return func(ctx context.Context, dst, src *os.File, size int64, _ []string) error {
			return qcow2.Write(ctx, dst, src, size, qcow2.Options{Compression: c})
		}
	}
	return map[string]job{
		"bunzip2": func(ctx context.Context, dst, src *os.File, size int64, _ []string) error {
			w := sparse.NewWriter(dst)
			if err := bzip2.Decompress(ctx, w, src, size); err != nil {
				return err
			}
			return w.Close()
		},
		"edit":       edit,
		"iso":        installer,
		"ova":        appliance,
		"pxe":        netboot,
		"qcow2":      toQCOW2(qcow2.Deflate),
		"zstd.qcow2": toQCOW2(qcow2.Zstd),
		"vhd": func(ctx context.Context, dst, src *os.File, size int64, _ []string) error {
			return vhd.Write(ctx, dst, src, size, vhd.Options{})
		},
		"vmdk": func(ctx context.Context, dst, src *os.File, size int64, _ []string) error {
			return vmdk.Write(ctx, dst, src, size, vmdk.Options{ContentID: [16]byte{4}})
		},
		"raw.zst": func(ctx context.Context, dst, src *os.File, size int64, _ []string) error {
			return installStream(ctx, dst, src, size)
		},
		"raw.xz": func(ctx context.Context, dst, src *os.File, _ int64, _ []string) error {
			return compress.XZ(ctx, dst, src)
		},
		"raw.gz": func(ctx context.Context, dst, src *os.File, _ int64, _ []string) error {
			return compress.Gzip(ctx, dst, src)
		},
		"img.zst": func(ctx context.Context, dst, src *os.File, _ int64, _ []string) error {
			return compress.Zstd(ctx, dst, src)
		},
	}
}

func jobNames() string { return strings.Join(slices.Sorted(maps.Keys(jobs())), ", ") }

// runJob opens the files: src, what the job wants besides, dst.
func runJob(ctx context.Context, name string, files []string) error {
	job, ok := jobs()[name]
	if !ok || len(files) < 2 {
		return fmt.Errorf("running job %q on %q: there are %s, each with a source and a destination", name, files, jobNames())
	}
	src, err := os.Open(files[0])
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.Create(files[len(files)-1])
	if err != nil {
		return err
	}
	defer dst.Close()
	return job(ctx, dst, src, st.Size(), files[1:len(files)-1])
}

// edit does what images/build does to a base image: copy it, write OEM anew with
// a configuration and ROOT with an extension.
func edit(ctx context.Context, dst, src *os.File, _ int64, more []string) error {
	if len(more) != 1 {
		return fmt.Errorf("editing: one extension is wanted, there are %q", more)
	}
	if err := sparse.Copy(ctx, dst, src); err != nil {
		return err
	}
	l, err := disk.ReadLayout(dst)
	if err != nil {
		return err
	}
	var oem, root fstree.Tree
	if err := oem.AddFile("config.ign", 0o644, fstree.Bytes([]byte(`{"ignition":{"version":"3.4.0"}}`))); err != nil {
		return err
	}
	extension, err := fstree.FromFile(more[0])
	if err != nil {
		return err
	}
	if err := root.AddFile("opt/extensions/bench/bench.raw", 0o644, extension); err != nil {
		return err
	}
	for _, p := range []disk.Partition{l.OEM, l.Root} {
		if err := sparse.Clear(dst, sparse.Range{Offset: p.Offset, Length: p.Length}); err != nil {
			return err
		}
	}
	at := time.Unix(0, 0)
	if err := btrfs.Write(io.NewOffsetWriter(dst, l.OEM.Offset), l.OEM.Length, &oem, btrfs.Options{Label: "OEM", UUID: [16]byte{1}, ModTime: at}); err != nil {
		return err
	}
	return ext4.Write(io.NewOffsetWriter(dst, l.Root.Offset), l.Root.Length, &root, ext4.Options{Label: "ROOT", UUID: [16]byte{2}, HashSeed: [16]byte{3}, ModTime: at})
}

// prepare makes a disk with about 0.8 GB of programs and container images in
// ROOT. The first of them, of about 150 MB, stands for an extension.
func prepare(ctx context.Context, base, image, upstream string) (extension string, err error) {
	in, err := os.Open(base)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.Create(image)
	if err != nil {
		return "", err
	}
	defer out.Close()
	if err := sparse.Copy(ctx, out, in); err != nil {
		return "", err
	}
	l, err := disk.ReadLayout(out)
	if err != nil {
		return "", err
	}
	root := &fstree.Tree{}
	var programs []string
	// Other versions may lie beside this one (make native-versions).
	for _, pattern := range []string{"kubernetes/v1.36.3/bin/linux/amd64/kube*", "images/kubernetes-v1.36.3.tar", "containerd/containerd"} {
		found, err := filepath.Glob(filepath.Join(upstream, pattern))
		if err != nil || len(found) == 0 {
			return "", fmt.Errorf("looking for %s in %q: nothing is there; run make upstream", pattern, upstream)
		}
		programs = append(programs, found...)
	}
	for i, p := range programs {
		c, err := fstree.FromFile(p)
		if err != nil {
			return "", err
		}
		if err := root.AddFile(fmt.Sprintf("opt/%d-%s", i, filepath.Base(p)), 0o755, c); err != nil {
			return "", err
		}
	}
	if err := sparse.Clear(out, sparse.Range{Offset: l.Root.Offset, Length: l.Root.Length}); err != nil {
		return "", err
	}
	err = ext4.Write(io.NewOffsetWriter(out, l.Root.Offset), l.Root.Length, root, ext4.Options{Label: "ROOT", UUID: [16]byte{2}, HashSeed: [16]byte{3}, ModTime: time.Unix(0, 0)})
	return programs[0], err
}
