package squashfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/fstree"
)

// layout is where the content of a file ended up. Files of equal content share
// one.
type layout struct {
	start    uint64   // of the first stored block
	blocks   []uint32 // stored sizes; 0 is a block of zeros
	sparse   uint64   // bytes in blocks of zeros
	fragment uint32   // index, or noFragment
	offset   uint32   // in the fragment
}

// job is one block on its way through the compressors. The queue keeps the
// order in which blocks were read, so the image does not depend on which
// compressor was faster.
type job struct {
	raw    []byte
	stored []byte // what goes to disk: packed, or raw itself
	size   uint32 // of stored, with rawBlock
	done   chan struct{}
	placed func(start uint64, size uint32)
}

// dataArea writes file blocks and fragment blocks from superSize on.
type dataArea struct {
	blockSize int
	ctx       context.Context // of the pipeline below, ended by its first error
	queue     chan *job       // to the writer, in order
	work      chan *job       // to the compressors, any order
	buffers   sync.Pool

	byDigest  map[[sha256.Size]byte]*layout
	pending   []byte // files of the fragment block being filled
	flushed   uint32 // fragment blocks handed to the pipeline
	fragments []fragmentEntry
}

// writeData stores the content of every file below root and returns the layout
// of each, the fragment table and the end of the area.
func writeData(w io.WriterAt, root *fstree.Node, blockSize, workers int) (map[*fstree.Node]*layout, []fragmentEntry, int64, error) {
	group, ctx := errgroup.WithContext(context.Background())
	d := &dataArea{
		blockSize: blockSize,
		ctx:       ctx,
		queue:     make(chan *job, 4*workers),
		work:      make(chan *job, 4*workers),
		byDigest:  map[[sha256.Size]byte]*layout{},
	}
	for range workers {
		group.Go(d.compress)
	}
	end := int64(superSize)
	group.Go(func() (err error) {
		end, err = d.write(w, end)
		return err
	})
	layouts := map[*fstree.Node]*layout{}
	group.Go(func() error {
		defer close(d.work)
		defer close(d.queue)
		return d.read(root, layouts)
	})
	if err := group.Wait(); err != nil {
		return nil, nil, 0, err
	}
	return layouts, d.fragments, end, nil
}

// read is the first stage: it decides what is stored and in which order.
func (d *dataArea) read(root *fstree.Node, layouts map[*fstree.Node]*layout) error {
	sizes := map[int64]int{}
	_ = root.Walk(func(n *fstree.Node) error {
		if n.Type == fstree.File {
			sizes[n.Content.Size()]++
		}
		return nil
	})
	buf := make([]byte, d.blockSize)
	err := root.Walk(func(n *fstree.Node) error {
		if n.Type != fstree.File {
			return nil
		}
		// Only files of one size can be equal; the others are read once.
		l, err := d.readFile(n.Content, buf, sizes[n.Content.Size()] > 1)
		if err != nil {
			return fmt.Errorf("reading %s for squashfs: %w", n.Path, err)
		}
		layouts[n] = l
		return nil
	})
	if err != nil {
		return err
	}
	return d.flushFragment()
}

func (d *dataArea) readFile(c fstree.Content, buf []byte, mayBeEqual bool) (*layout, error) {
	l := &layout{fragment: noFragment}
	small := c.Size() < int64(d.blockSize)
	if !small {
		l.blocks = make([]uint32, (c.Size()+int64(d.blockSize)-1)/int64(d.blockSize))
	}
	if mayBeEqual && c.Size() > 0 {
		h := sha256.New()
		if err := fstree.ReadBlocks(c, buf, func(b []byte) error { _, err := h.Write(b); return err }); err != nil {
			return nil, err
		}
		sum := [sha256.Size]byte(h.Sum(nil))
		if same, ok := d.byDigest[sum]; ok {
			return same, nil
		}
		d.byDigest[sum] = l
	}
	next := 0
	err := fstree.ReadBlocks(c, buf, func(b []byte) error {
		if small {
			return d.addFragment(l, b)
		}
		next++
		return d.addBlock(l, next-1, b)
	})
	return l, err
}

func (d *dataArea) addFragment(l *layout, b []byte) error {
	if len(d.pending)+len(b) > d.blockSize {
		if err := d.flushFragment(); err != nil {
			return err
		}
	}
	l.fragment = d.flushed
	l.offset = uint32(len(d.pending))
	d.pending = append(d.pending, b...)
	return nil
}

func (d *dataArea) flushFragment() error {
	if len(d.pending) == 0 {
		return nil
	}
	b := d.pending
	d.pending = d.pending[:0]
	d.flushed++
	return d.submit(b, func(start uint64, size uint32) {
		d.fragments = append(d.fragments, fragmentEntry{Start: start, Size: size})
	})
}

func (d *dataArea) addBlock(l *layout, i int, b []byte) error {
	if isZero(b) {
		l.sparse += uint64(len(b))
		return nil
	}
	return d.submit(b, func(start uint64, size uint32) {
		l.blocks[i] = size
		if l.start == 0 {
			l.start = start
		}
	})
}

// submit hands a copy of b to the pipeline; placed is called by its last stage.
func (d *dataArea) submit(b []byte, placed func(uint64, uint32)) error {
	j := &job{done: make(chan struct{}), placed: placed}
	if free, ok := d.buffers.Get().([]byte); ok {
		j.raw = append(free[:0], b...)
	} else {
		j.raw = append(make([]byte, 0, d.blockSize), b...)
	}
	for _, stage := range []chan *job{d.queue, d.work} {
		select {
		case stage <- j:
		case <-d.ctx.Done():
			return d.ctx.Err()
		}
	}
	return nil
}

// compress is the second stage, one goroutine for each worker.
func (d *dataArea) compress() error {
	enc, err := newEncoder(d.blockSize)
	if err != nil {
		return fmt.Errorf("making a zstd encoder for squashfs: %w", err)
	}
	for j := range d.work {
		packed, _ := d.buffers.Get().([]byte)
		packed = enc.EncodeAll(j.raw, packed[:0])
		j.stored, j.size = packed, uint32(len(packed))
		if len(packed) >= len(j.raw) {
			j.stored, j.size = j.raw, uint32(len(j.raw))|rawBlock
			d.buffers.Put(packed) //nolint:staticcheck // SA6002: one slice header a block is nothing
		}
		close(j.done)
	}
	return nil
}

// write is the last stage. It returns the end of what it wrote.
func (d *dataArea) write(w io.WriterAt, off int64) (int64, error) {
	for j := range d.queue {
		select {
		case <-j.done:
		case <-d.ctx.Done():
			return 0, d.ctx.Err()
		}
		if _, err := w.WriteAt(j.stored, off); err != nil {
			return 0, fmt.Errorf("writing squashfs data at %d: %w", off, err)
		}
		j.placed(uint64(off), j.size)
		off += int64(len(j.stored))
		d.buffers.Put(j.stored) //nolint:staticcheck // SA6002, as above
	}
	return off, nil
}

func isZero(b []byte) bool {
	// Comparing the block with itself one byte on lets memequal do the work.
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}
