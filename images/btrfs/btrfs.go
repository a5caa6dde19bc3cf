package btrfs

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/imagectl/imagectl/images/fstree"
)

// Options of a file system. UUID must be set; the rest has good zero values.
type Options struct {
	// Label is at most 255 bytes.
	Label string
	// UUID of the file system. Those of the device, the chunk tree and the
	// root subvolume are derived from it (RFC 9562, version 5).
	UUID [16]byte
	// ModTime is the time of the file system and of entries without a time of
	// their own. Zero means 1970.
	ModTime time.Time
}

// filesystem is one being made, its contents written and its trees to come.
type filesystem struct {
	w         io.WriterAt
	o         Options
	size      uint64
	device    uuid.UUID
	chunkTree uuid.UUID
	rootUUID  uuid.UUID

	extents []dataExtent
	space   space
	// placed are the trees that do not depend on where anything is: the file
	// system's, the checksums', the UUIDs' and the one for relocation.
	placed []*tree
	chunks *tree // in the system chunk
}

// Write makes a file system of size bytes (the last incomplete sector is not
// used; 16 MiB to 256 GiB) that holds the tree. Where w is not written it must
// read as zeros: a fresh sparse file, or a disk after discarding. Content is
// streamed; blocks of zeros are not written.
func Write(w io.WriterAt, size int64, t *fstree.Tree, o Options) error {
	if len(o.Label) > 255 {
		return fmt.Errorf("making btrfs: label of %d bytes, 255 are possible", len(o.Label))
	}
	if o.UUID == [16]byte{} {
		return errors.New("making btrfs: the UUID is not set")
	}
	if size < 16<<20 || size > superMirror2 {
		return fmt.Errorf("making btrfs: size %d is outside 16 MiB to 256 GiB", size)
	}
	f := &filesystem{
		w: w, o: o, size: uint64(size) / sectorSize * sectorSize,
		device:    uuid.NewSHA1(o.UUID, []byte("device")),
		chunkTree: uuid.NewSHA1(o.UUID, []byte("chunk tree")),
		rootUUID:  uuid.NewSHA1(o.UUID, []byte("root subvolume")),
	}
	f.space = space{next: mixedStart, limit: f.size}
	if err := f.make(t.Root()); err != nil {
		return fmt.Errorf("making btrfs of %d bytes: %w", size, err)
	}
	return nil
}

func (f *filesystem) make(root *fstree.Node) error {
	c := contents{w: f.w, space: &f.space, modTime: f.o.ModTime, buf: make([]byte, 1<<20)}
	if err := c.add(root); err != nil {
		return err
	}
	f.extents = c.extents
	emptyRoot := &fstree.Node{Entry: fstree.Entry{Path: ".", Mode: 0o755}}
	emptyRoot.Parent = emptyRoot
	reloc := contents{modTime: f.o.ModTime}
	if err := reloc.add(emptyRoot); err != nil {
		return err
	}
	f.placed = []*tree{
		newTree(idFSTree, c.items),
		newTree(idCsumTree, c.checksums()),
		newTree(idUUIDTree, f.uuidItems()),
		newTree(idDataReloc, reloc.items),
	}
	for _, t := range f.placed {
		if err := f.space.place(t); err != nil {
			return err
		}
	}
	rootTree, others, err := f.settle()
	if err != nil {
		return err
	}
	return f.write(rootTree, append(others, f.placed...))
}

// settle places the trees that say where everything is, themselves included:
// it tries with their last sizes until these do not change any more. Trees only
// grow on the way, so it ends.
func (f *filesystem) settle() (rootTree *tree, others []*tree, err error) {
	root, dev, free, extent := newTree(idRootTree, nil), newTree(idDevTree, nil), newTree(idFreeSpace, nil), newTree(idExtentTree, nil)
	f.chunks = newTree(idChunkTree, nil)
	for {
		space := f.space // a copy to try with
		before := 0
		for _, t := range []*tree{root, dev, free, extent} {
			if err := space.place(t); err != nil {
				return nil, nil, err
			}
			before += t.nodes()
		}
		f.chunks = newTree(idChunkTree, f.chunkItems(&space))
		f.chunks.at = []uint64{systemStart} // three items: one node
		all := append([]*tree{f.chunks, root, dev, free, extent}, f.placed...)

		next := []*tree{
			newTree(idRootTree, f.rootItems(all)),
			newTree(idDevTree, f.devItems(&space)),
			newTree(idFreeSpace, f.freeItems(&space)),
			newTree(idExtentTree, f.extentItems(&space, all)),
		}
		after := 0
		for i, t := range []**tree{&root, &dev, &free, &extent} {
			next[i].at = (*t).at
			*t = next[i]
			after += next[i].nodes()
		}
		if after == before {
			f.space = space
			return root, []*tree{dev, free, extent}, nil
		}
	}
}

// write writes the nodes of all trees and then the superblocks.
func (f *filesystem) write(rootTree *tree, others []*tree) error {
	header := nodeHeader{FSID: f.o.UUID, Flags: headerWritten | headerBackref, ChunkUUID: f.chunkTree, Generation: generation}
	for _, t := range append([]*tree{f.chunks, rootTree}, others...) {
		if err := t.write(f.w, header); err != nil {
			return err
		}
	}
	systemChunk := f.chunks.items[1]
	s := superblock{
		FSID: f.o.UUID, Flags: headerWritten, Magic: superMagic, Generation: generation,
		Root: rootTree.root(), RootLevel: rootTree.level(),
		ChunkRoot: f.chunks.root(), ChunkRootGeneration: generation,
		TotalBytes: f.size, BytesUsed: f.space.used() + nodeSize,
		RootDir: idRootDir, Devices: 1,
		SectorSize: sectorSize, NodeSize: nodeSize, LeafSize: nodeSize, StripeSize: sectorSize,
		SystemChunksSize: 17 + uint32(len(systemChunk.data)),
		CompatRO:         compatFreeSpace, Incompat: incompat,
		Device:             f.devItem(&f.space),
		UUIDTreeGeneration: generation,
	}
	copy(s.Label[:], f.o.Label)
	copy(s.SystemChunks[:], append(encode(systemChunk.key), systemChunk.data...))
	for _, at := range []uint64{superOffset, superMirror} {
		if at+sectorSize > f.size {
			break
		}
		s.At = at
		if _, err := f.w.WriteAt(seal(encode(s)), int64(at)); err != nil {
			return fmt.Errorf("writing btrfs superblock at %d: %w", at, err)
		}
	}
	return nil
}
