package ext4

import (
	"errors"
)

var errFull = errors.New("the tree does not fit: make the file system larger")

// allocator hands out blocks from the start to the end of the file system.
// Nothing is ever freed, so one mark per group says all about what is in use.
type allocator struct {
	geo   geometry
	group int
	used  []int // blocks in use from the start of each group
}

func newAllocator(geo geometry) (*allocator, error) {
	a := &allocator{geo: geo, used: make([]int, geo.groups)}
	for i := range a.used {
		a.used[i] = geo.overhead(i)
		if a.used[i] > geo.groupBlocks(i) {
			return nil, errFull
		}
	}
	return a, nil
}

// take gives n blocks as extents for the logical blocks from 0 on.
func (a *allocator) take(n int64) ([]extent, error) {
	var out []extent
	logical := uint32(0)
	for n > 0 {
		if a.group == a.geo.groups {
			return nil, errFull
		}
		free := a.geo.groupBlocks(a.group) - a.used[a.group]
		if free == 0 {
			a.group++
			continue
		}
		length := int(min(n, int64(free), maxExtentBlocks))
		start := a.geo.firstBlock(a.group) + uint64(a.used[a.group])
		out = append(out, extent{Logical: logical, Length: uint16(length), StartHigh: uint16(start >> 32), StartLow: uint32(start)})
		a.used[a.group] += length
		logical += uint32(length)
		n -= int64(length)
	}
	return out, nil
}

func (a *allocator) takeOne() (uint64, error) {
	e, err := a.take(1)
	if err != nil {
		return 0, err
	}
	return e[0].start(), nil
}

func (a *allocator) freeIn(group int) int { return a.geo.groupBlocks(group) - a.used[group] }

func (a *allocator) free() uint64 {
	var n uint64
	for i := range a.used {
		n += uint64(a.freeIn(i))
	}
	return n
}

// bitmap is a group's block bitmap, with the bits behind the end of the file
// system set.
func (a *allocator) bitmap(group int) []byte {
	b := make([]byte, blockSize)
	setBits(b, 0, a.used[group])
	setBits(b, a.geo.groupBlocks(group), blocksPerGroup)
	return b
}

func setBits(b []byte, from, to int) {
	for i := from; i < to; i++ {
		b[i/8] |= 1 << (i % 8)
	}
}
