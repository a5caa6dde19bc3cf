// Package install writes an image to the one disk that a rule selects, so that
// at no moment a machine boots a half-written system.
//
// The disk's first MiB, and with it the partition table and the boot code, is
// zeroed first and written last: after every other byte was read back from the
// medium and found to have the ordered digest, and after the machine's identity
// is in the ROOT file system. Whatever stops an installation, SIGKILL included,
// leaves a disk that no firmware boots, and the next attempt starts over.
//
// It decides nothing about who may install: that is in the order.
package install

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/images/extent"
)

// Phase is a part of an installation, for progress reports.
type Phase string

// The phases in order.
const (
	Writing   Phase = "writing"
	Verifying Phase = "verifying"
	Identity  Phase = "identity"
	Finishing Phase = "finishing"
)

const (
	mib = 1 << 20
	// mountDir is where ROOT is mounted for a moment.
	mountDir = "/run/imagectl/root"
)

// Installer installs onto a Host's disks. All fields but Progress are needed.
type Installer struct {
	Host *host.Host
	HTTP *http.Client
	Log  *slog.Logger
	// Progress is told about bytes done of a phase; it must not block. May be nil.
	Progress func(phase Phase, done, total uint64)
}

// Done says what an installation did.
type Done struct {
	Disk host.Disk
	// Bytes written to the disk, holes excluded.
	Bytes int64
	// ESP is the EFI system partition; nil when the image has none.
	ESP *Partition
}

// Install carries an order out; files are the machine's identity (its key, its
// certificate), written to ROOT besides those of the order. An error that is a
// *RefusedError will not go away by trying again.
func (i *Installer) Install(ctx context.Context, order *api.Install, files []*api.File) (Done, error) {
	if err := check(order); err != nil {
		return Done{}, err
	}
	disk, err := Select(order.GetDisk(), i.Host.Facts().Disks)
	if err != nil {
		return Done{}, err
	}
	if uint64(disk.Size) < order.GetRawSize() {
		return Done{}, refuse(DiskTooSmall, "the disk %s has %d bytes, the image needs %d", disk.Path, disk.Size, order.GetRawSize())
	}
	// A predecessor that was killed may have left ROOT mounted, or about to be.
	if err := i.Host.Release(ctx, disk.Path, mountDir); err != nil {
		return Done{}, err
	}
	dev, err := i.Host.OpenDisk(disk.Path)
	if err != nil {
		return Done{}, err
	}
	i.Log.Info("installing", "disk", disk.Path, "model", disk.Model, "serial", disk.Serial, "bytes", disk.Size, "image", order.GetImageSha256(), "arming", order.GetArmingId())
	w := &writing{dev: dev, order: order, head: make([]byte, mib), progress: i.Progress}
	err = i.write(ctx, w, disk.Path, files)
	if cerr := dev.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("closing disk %s: %w", disk.Path, cerr)
	}
	done := Done{Disk: disk, Bytes: w.bytes}
	if esp, noESP := findPartition(w.head, "EFI system", Partition.isESP); err == nil && noESP == nil {
		done.ESP = &esp
	}
	return done, err
}

func check(o *api.Install) error {
	u, err := url.Parse(o.GetImageUrl())
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return refuse(BadOrder, "the image's URL %q is no http or https URL", o.GetImageUrl())
	case o.GetCompression() != "zstd":
		return refuse(BadOrder, "the image's compression is %q; this agent knows zstd only: netboot a newer installer", o.GetCompression())
	case !isSHA256(o.GetImageSha256()) || !isSHA256(o.GetRawSha256()):
		return refuse(BadOrder, "the order's digests %q and %q are not two SHA-256 in lower-case hexadecimal", o.GetImageSha256(), o.GetRawSha256())
	case o.GetImageSize() == 0 || o.GetRawSize() <= mib || o.GetRawSize() > extent.MaxSize || o.GetImageSize() > extent.MaxSize:
		return refuse(BadOrder, "the order's sizes, %d compressed and %d raw, are not possible", o.GetImageSize(), o.GetRawSize())
	case len(o.GetNodeConfig()) == 0:
		return refuse(BadOrder, "the order has no node configuration: the installed system would have nobody to call")
	}
	return nil
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && s == strings.ToLower(s)
}

// write is the order of things on the disk.
func (i *Installer) write(ctx context.Context, w *writing, disk string, files []*api.File) error {
	if err := w.wipe(); err != nil {
		return err
	}
	d := &download{ctx: ctx, client: i.HTTP, url: w.order.GetImageUrl(), size: int64(w.order.GetImageSize()), pause: pause}
	err := w.stream(ctx, d)
	d.Close()
	if err != nil {
		return err
	}
	if err := w.verify(ctx); err != nil {
		return err
	}
	w.report(Identity, 0, 0)
	if err := i.identity(ctx, w, disk, files); err != nil {
		return err
	}
	w.report(Finishing, 0, 0)
	if err := w.finish(); err != nil {
		return err
	}
	if err := w.dev.Reread(); err != nil {
		// The machine reboots next, which reads it for certain.
		i.Log.Warn("leaving the old partition table in the kernel", "err", err)
	}
	return nil
}

// writing is one image on its way to one disk.
type writing struct {
	dev      *host.BlockDevice
	order    *api.Install
	progress func(Phase, uint64, uint64)
	// head is the first MiB, which stays in memory until the end.
	head []byte
	// records are what the stream had, for reading back.
	records []record
	bytes   int64
}

type record struct{ off, length int64 }

func (w *writing) report(p Phase, done, total uint64) {
	if w.progress != nil {
		w.progress(p, done, total)
	}
}

// wipe makes the disk unbootable: both partition tables go.
func (w *writing) wipe() error {
	if err := w.dev.Zero(0, mib); err != nil {
		return err
	}
	end := w.dev.Size() / sector * sector
	if err := w.dev.Zero(end-mib, mib); err != nil {
		return err
	}
	return w.dev.Flush()
}

// stream writes the image but for the first MiB, and compares what came with
// the order.
func (w *writing) stream(ctx context.Context, d *download) error {
	sum := sha256.New()
	in := io.TeeReader(d, sum)
	z, err := extent.Decompress(in)
	if err != nil {
		return err
	}
	defer z.Close()
	r := extent.NewReader(z)
	var at int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		off, data, err := r.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, extent.ErrFormat) {
			break
		} else if err != nil {
			return w.streamError(err, d)
		}
		if end := off + int64(len(data)); uint64(end) > w.order.GetRawSize() {
			return refuse(WrongImage, "the image %s writes up to byte %d, the order says that it is %d bytes long", w.order.GetImageUrl(), end, w.order.GetRawSize())
		}
		if err := w.put(at, off, data); err != nil {
			return err
		}
		at = off + int64(len(data))
		w.report(Writing, uint64(d.off), w.order.GetImageSize())
	}
	if err := w.zero(at, int64(w.order.GetRawSize())); err != nil {
		return err
	}
	// What follows the last frame counts as well.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != w.order.GetImageSha256() {
		return refuse(WrongImage, "the image %s has SHA-256 %s, the order says %s: the disk is left without a partition table", w.order.GetImageUrl(), got, w.order.GetImageSha256())
	}
	if uint64(r.Size()) != w.order.GetRawSize() || r.SHA256() != w.order.GetRawSha256() {
		return refuse(WrongImage, "the image %s unpacks to %d bytes with SHA-256 %s, the order says %d and %s", w.order.GetImageUrl(), r.Size(), r.SHA256(), w.order.GetRawSize(), w.order.GetRawSha256())
	}
	return nil
}

// streamError tells a wrong image, for which trying again is no use, from a
// broken download.
func (w *writing) streamError(err error, d *download) error {
	if d.broken != nil {
		return d.broken
	}
	return refuse(WrongImage, "the image %s cannot be unpacked: %v", w.order.GetImageUrl(), err)
}

// put writes a record and zeroes what lies between it and the one before: the
// file systems in the image rely on holes that read as zeros, and the disk may
// hold the remains of another life.
func (w *writing) put(at, off int64, data []byte) error {
	if err := w.zero(at, off); err != nil {
		return err
	}
	w.records = append(w.records, record{off, int64(len(data))})
	w.bytes += int64(len(data))
	if off < mib {
		n := copy(w.head[off:], data)
		off, data = off+int64(n), data[n:]
	}
	if len(data) == 0 {
		return nil
	}
	if _, err := w.dev.WriteAt(data, off); err != nil {
		return fmt.Errorf("writing %d bytes at %d: %w", len(data), off, err)
	}
	return nil
}

func (w *writing) zero(from, to int64) error {
	from = max(from, mib)
	if from >= to {
		return nil
	}
	// Only an image's very end may lie inside a sector.
	start := (from + sector - 1) / sector * sector
	end := (to + sector - 1) / sector * sector
	if start >= end {
		return nil
	}
	return w.dev.Zero(start, end-start)
}

// verify reads the disk back, past the kernel's cache, and compares the digest
// of the extent stream that the disk now holds.
func (w *writing) verify(ctx context.Context) error {
	if err := w.dev.Flush(); err != nil {
		return err
	}
	sum := sha256.New()
	sum.Write([]byte(extent.Magic))
	buf := make([]byte, mib)
	var done int64
	for _, r := range w.records {
		header(sum, r.off, r.length)
		for off, end := r.off, r.off+r.length; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := buf[:min(int64(len(buf)), end-off)]
			if off < mib {
				p = p[:min(int64(len(p)), mib-off)]
				copy(p, w.head[off:])
			} else if _, err := w.dev.ReadAt(p, off); err != nil {
				return fmt.Errorf("reading %d bytes back at %d: %w", len(p), off, err)
			}
			sum.Write(p)
			off += int64(len(p))
			done += int64(len(p))
			w.report(Verifying, uint64(done), uint64(w.bytes))
		}
	}
	header(sum, int64(w.order.GetRawSize()), 0)
	if got := hex.EncodeToString(sum.Sum(nil)); got != w.order.GetRawSha256() {
		// No refusal: a disk may read well the next time. It has few chances.
		return fmt.Errorf("the disk reads back with SHA-256 %s instead of %s: it is faulty, and is left without a partition table", got, w.order.GetRawSha256())
	}
	return nil
}

func header(sum hash.Hash, off, length int64) {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(off))
	binary.BigEndian.PutUint64(b[8:], uint64(length))
	sum.Write(b[:])
}

// identity writes into ROOT what makes this image this machine.
func (i *Installer) identity(ctx context.Context, w *writing, disk string, files []*api.File) error {
	root, err := findPartition(w.head, "ROOT", func(p Partition) bool { return p.label == "ROOT" })
	if err != nil {
		return refuse(WrongImage, "the image %s cannot be given an identity: %v", w.order.GetImageUrl(), err)
	}
	off, length := root.bytes()
	if err := i.Host.MountPart(ctx, disk, off, length, mountDir); err != nil {
		return err
	}
	err = i.populate(w.order, files)
	if uerr := i.Host.Release(ctx, disk, mountDir); err == nil {
		err = uerr
	}
	return err
}

func (i *Installer) populate(order *api.Install, files []*api.File) error {
	root := &host.Host{Root: path.Join("/", i.Host.Root, mountDir)}
	if err := root.MkdirAll("/var/lib/imagectl", 0o700); err != nil {
		return err
	}
	all := append([]*api.File{
		{Path: "/etc/hostname", Mode: 0o644, Content: []byte(order.GetMachine() + "\n")},
		{Path: "/etc/imagectl/node.json", Mode: 0o644, Content: order.GetNodeConfig()},
	}, files...)
	for _, f := range append(all, order.GetFiles()...) {
		if !path.IsAbs(f.GetPath()) || path.Clean(f.GetPath()) != f.GetPath() {
			return refuse(BadOrder, "the file %q to leave in ROOT is no clean absolute path", f.GetPath())
		}
		if err := root.WriteFile(f.GetPath(), f.GetContent(), modeOf(f)); err != nil {
			return err
		}
	}
	return nil
}

// modeOf reads a mode of 0 as 0644.
func modeOf(f *api.File) fs.FileMode {
	if f.GetMode() == 0 {
		return 0o644
	}
	return fs.FileMode(f.GetMode()) & fs.ModePerm
}

// finish makes the disk bootable.
func (w *writing) finish() error {
	if err := w.dev.Flush(); err != nil {
		return err
	}
	if _, err := w.dev.WriteAt(w.head, 0); err != nil {
		return fmt.Errorf("writing the first MiB: %w", err)
	}
	return w.dev.Flush()
}
