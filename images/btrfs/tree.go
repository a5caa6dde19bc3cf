package btrfs

import (
	"encoding/binary"
	"fmt"
	"io"
)

// item is one record of a tree.
type item struct {
	key
	data []byte
}

// tree is a B-tree built from items in the order of their keys. Nodes are
// numbered from the leaves up, the root last.
type tree struct {
	id    uint64
	items []item
	// counts says, for each level from the leaves up, how many items or child
	// nodes each node has.
	counts [][]int
	at     []uint64 // the address of each node, set by whoever places them
}

// newTree packs the items into nodes. It needs their number and sizes only:
// keys and data may still change as long as these do not.
func newTree(id uint64, items []item) *tree {
	t := &tree{id: id, items: items}
	var leaves []int
	space, n := leafSpace, 0
	for _, it := range items {
		need := slotSize + len(it.data)
		if need > space {
			leaves = append(leaves, n)
			space, n = leafSpace, 0
		}
		space -= need
		n++
	}
	t.counts = [][]int{append(leaves, n)}
	for below := len(t.counts[0]); below > 1; {
		var level []int
		for left := below; left > 0; left -= maxPtrs {
			level = append(level, min(left, maxPtrs))
		}
		t.counts = append(t.counts, level)
		below = len(level)
	}
	return t
}

func (t *tree) nodes() int {
	n := 0
	for _, level := range t.counts {
		n += len(level)
	}
	return n
}

func (t *tree) root() uint64 { return t.at[len(t.at)-1] }

func (t *tree) level() uint8 { return uint8(len(t.counts) - 1) }

// each calls f with the address and level of every node.
func (t *tree) each(f func(at uint64, level uint8)) {
	i := 0
	for level, nodes := range t.counts {
		for range nodes {
			f(t.at[i], uint8(level))
			i++
		}
	}
}

// write encodes all nodes. The header gives what all nodes of the file system
// share. Logical addresses are physical ones here.
func (t *tree) write(w io.WriterAt, header nodeHeader) error {
	header.Owner = t.id
	firsts := make([]key, 0, len(t.counts[0])) // of the nodes of the level below
	items, node, below := t.items, 0, 0
	for level, counts := range t.counts {
		header.Level = uint8(level)
		var next []key
		for _, n := range counts {
			header.At, header.Items = t.at[node], uint32(n)
			block := make([]byte, nodeSize)
			copy(block, encode(header))
			first := key{}
			if level == 0 {
				fillLeaf(block, items[:n])
				if n > 0 {
					first = items[0].key
				}
				items = items[n:]
			} else {
				first = firsts[0]
				fillNode(block, firsts[:n], t.at[below:below+n])
				firsts, below = firsts[n:], below+n
			}
			next = append(next, first)
			if _, err := w.WriteAt(seal(block), int64(header.At)); err != nil {
				return fmt.Errorf("writing btrfs node at %d: %w", header.At, err)
			}
			node++
		}
		firsts = next
	}
	return nil
}

// fillLeaf puts the slots behind the header and the data at the end, the first
// item's last.
func fillLeaf(block []byte, items []item) {
	slot, end := headerSize, nodeSize
	for _, it := range items {
		end -= len(it.data)
		copy(block[end:], it.data)
		copy(block[slot:], encode(it.key))
		binary.LittleEndian.PutUint32(block[slot+17:], uint32(end-headerSize))
		binary.LittleEndian.PutUint32(block[slot+21:], uint32(len(it.data)))
		slot += slotSize
	}
}

func fillNode(block []byte, firsts []key, at []uint64) {
	for i, k := range firsts {
		slot := headerSize + i*ptrSize
		copy(block[slot:], encode(k))
		binary.LittleEndian.PutUint64(block[slot+17:], at[i])
		binary.LittleEndian.PutUint64(block[slot+25:], generation)
	}
}
