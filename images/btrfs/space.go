package btrfs

import "fmt"

// Where the chunks are. Logical addresses are physical ones, as mkfs.btrfs
// makes them for a single device.
const (
	systemStart = 1 << 20 // below it nothing but the superblock may be
	systemSize  = 4 << 20
	mixedStart  = systemStart + systemSize
)

// space hands out addresses of the mixed chunk in ascending order. Copying it
// is a way to try.
type space struct {
	next  uint64
	limit uint64 // end of the device
}

// take gives up to n bytes, a multiple of the sector size, in one piece that
// stays clear of the superblock's copy: the kernel reserves the whole stripe
// around it.
func (s *space) take(n uint64) (at, got uint64, err error) {
	if s.next >= superMirror && s.next < superMirror+stripeLen {
		s.next = superMirror + stripeLen
	}
	if s.next < superMirror {
		n = min(n, superMirror-s.next)
	}
	if s.next+n > s.limit {
		return 0, 0, fmt.Errorf("the tree does not fit into the %d bytes: make the file system larger", s.limit)
	}
	at = s.next
	s.next += n
	return at, n, nil
}

// place gives every node of a tree its address.
func (s *space) place(t *tree) error {
	t.at = make([]uint64, t.nodes())
	for i := range t.at {
		var err error
		if t.at[i], _, err = s.take(nodeSize); err != nil {
			return err
		}
	}
	return nil
}

// used is how many bytes have been handed out.
func (s *space) used() uint64 {
	n := s.next - mixedStart
	if s.next > superMirror {
		n -= stripeLen
	}
	return n
}

// chunkSize is how long the mixed chunk is made: what is used and an eighth or
// 8 MiB more, if the device has it. The rest is left for the kernel to make
// chunks of.
func (s *space) chunkSize() uint64 {
	used := s.next - mixedStart
	want := (used + max(used/8, 8<<20) + (1<<20 - 1)) &^ (1<<20 - 1)
	return min(want, (s.limit-mixedStart)&^(stripeLen-1))
}

// free lists the pieces of the mixed chunk that are not in use, as the free
// space tree counts them: the stripe of the superblock's copy is one when
// content lies behind it.
func (s *space) free() [][2]uint64 {
	var out [][2]uint64
	if s.next > superMirror {
		out = append(out, [2]uint64{superMirror, stripeLen})
	}
	if end := uint64(mixedStart) + s.chunkSize(); end > s.next {
		out = append(out, [2]uint64{s.next, end - s.next})
	}
	return out
}
