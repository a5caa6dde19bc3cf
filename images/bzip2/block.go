package bzip2

import (
	"encoding/binary"
	"fmt"
)

// Limits of the format.
const (
	maxBlock    = 900_000 // bytes of a block before its first run-length coding is undone
	maxCode     = 20      // bits of a Huffman code
	maxSymbols  = 258
	groupLength = 50 // symbols that are coded by the same tree
	// maxBlockBits is more than any block has: 32,767 groups of 50 symbols.
	maxBlockBits = 40 << 20
	// longRun is from what length on a run of equal bytes is kept as such. A block
	// of nothing but zeros has 45 MB of them.
	longRun = 8 << 10
)

// content is a block's: literal bytes, with runs of equal bytes between them.
type content struct {
	literal []byte
	runs    []run
}

// run is n times value, before literal[at].
type run struct {
	at, n int
	value byte
}

// decoder decodes blocks one after the other. It holds what takes long to make.
type decoder struct {
	crc *crcTables
	raw []byte
	// next is the inverse Burrows–Wheeler transform: an entry has a byte in its low
	// 8 bits, and in the others which entry follows.
	next []uint32
	// plain is the block before its first run-length coding is undone.
	plain     []byte
	selectors []byte
	trees     [6]tree
	lengths   [maxSymbols]byte
}

func newDecoder(crc *crcTables) *decoder {
	return &decoder{crc: crc, next: make([]uint32, maxBlock), plain: make([]byte, maxBlock)}
}

// bitReader reads a block's bits. Behind the end there are zeros.
type bitReader struct {
	p []byte
	// word holds have bits from the top; at is the next byte of p.
	word uint64
	have uint
	at   int
}

// padding is what p has behind its end, so that eight bytes can always be read.
const padding = 16

func (b *bitReader) fill() {
	if b.at+8 > len(b.p) {
		// Whoever reads on finds zeros; used tells how many.
		b.at += int(64-b.have) / 8
		b.have += (64 - b.have) / 8 * 8
		return
	}
	b.word |= binary.BigEndian.Uint64(b.p[b.at:]) >> b.have
	n := (63 - b.have) / 8
	b.at += int(n)
	b.have += n * 8
}

// read takes n bits, at most 32.
func (b *bitReader) read(n uint) uint32 {
	if b.have < n {
		b.fill()
	}
	v := uint32(b.word >> (64 - n))
	b.word <<= n
	b.have -= n
	return v
}

// skip leaves out n bits.
func (b *bitReader) skip(n uint) {
	for ; n > 32; n -= 32 {
		b.read(32)
	}
	b.read(n)
}

// used is how many bits were taken from the start of p.
func (b *bitReader) used() int64 { return int64(b.at)*8 - int64(b.have) }

// tree decodes a canonical Huffman code: codes of up to rootBits bits by a table,
// longer ones by the first code of each length.
type tree struct {
	root [1 << rootBits]uint16 // symbol<<5 | length, 0 for a longer or no code
	// limit is the first code behind those of a length, as if all codes had
	// maxCode bits; base leads from a code to its place in symbols.
	limit   [maxCode + 1]uint32
	base    [maxCode + 1]int32
	symbols [maxSymbols]uint16
}

const rootBits = 10

func (t *tree) build(lengths []byte) error {
	var count [maxCode + 1]int
	for _, n := range lengths {
		count[n]++
	}
	clear(t.root[:])
	var code uint32
	at := 0
	for n := 1; n <= maxCode; n++ {
		code <<= 1
		t.base[n] = int32(at) - int32(code)
		if code+uint32(count[n]) > 1<<n {
			return fmt.Errorf("%w: a tree's codes overlap", ErrParallel)
		}
		for symbol, l := range lengths {
			if int(l) != n {
				continue
			}
			if n <= rootBits {
				from := code << (rootBits - n)
				for i := range uint32(1) << (rootBits - n) {
					t.root[from+i] = uint16(symbol)<<5 | uint16(n)
				}
			}
			t.symbols[at] = uint16(symbol)
			at++
			code++
		}
		t.limit[n] = code << (maxCode - n)
	}
	return nil
}

// long finds a code of more than rootBits bits at the top of word.
func (t *tree) long(word uint64) (symbol uint16, length uint, ok bool) {
	v := uint32(word >> (64 - maxCode))
	for n := rootBits + 1; n <= maxCode; n++ {
		if v < t.limit[n] {
			return t.symbols[int32(v>>(maxCode-n))+t.base[n]], uint(n), true
		}
	}
	return 0, 0, false
}

// decode decodes the block whose mark starts at bit from of d.raw, less than 8,
// and which ends at bit to.
func (d *decoder) decode(from, to int64, out *content) (crc uint32, err error) {
	in := bitReader{p: d.raw}
	in.skip(uint(from) + 48) // up to behind the mark
	crc = in.read(32)
	if in.read(1) != 0 {
		return 0, fmt.Errorf("%w: a randomized block", ErrParallel)
	}
	start := in.read(24)
	n, err := d.symbols(&in)
	if err != nil {
		return 0, err
	}
	if in.used() != to {
		return 0, fmt.Errorf("%w: a block ends at another bit than the next one starts", ErrParallel)
	}
	if int(start) >= n {
		return 0, fmt.Errorf("%w: a block of %d bytes starts at %d", ErrParallel, n, start)
	}
	d.invert(n, start)
	if got := d.expand(d.plain[:n], out); got != crc {
		return 0, fmt.Errorf("%w: a block's checksum is %08x, want %08x", ErrParallel, got, crc)
	}
	return crc, nil
}

// head reads which bytes a block has, its selectors and its trees. It leaves the
// bytes in order in mtf.
func (d *decoder) head(in *bitReader, mtf *[256]byte) (endOfBlock uint16, err error) {
	used := 0
	ranges := in.read(16)
	for i := range 16 {
		if ranges&(0x8000>>i) == 0 {
			continue
		}
		set := in.read(16)
		for j := range 16 {
			if set&(0x8000>>j) != 0 {
				mtf[used] = byte(i*16 + j)
				used++
			}
		}
	}
	trees, selectors := int(in.read(3)), int(in.read(15))
	if used == 0 || trees < 2 || trees > len(d.trees) || selectors == 0 {
		return 0, fmt.Errorf("%w: a block has %d bytes, %d trees, %d selectors", ErrParallel, used, trees, selectors)
	}
	order := [6]byte{0, 1, 2, 3, 4, 5}
	d.selectors = d.selectors[:0]
	for range selectors {
		j := 0
		for in.read(1) == 1 {
			if j++; j >= trees {
				return 0, fmt.Errorf("%w: a selector of %d trees is %d", ErrParallel, trees, j)
			}
		}
		s := order[j]
		copy(order[1:j+1], order[:j])
		order[0] = s
		d.selectors = append(d.selectors, s)
	}
	for i := range trees {
		lengths := d.lengths[:used+2]
		length := in.read(5)
		for s := range lengths {
			for {
				if length < 1 || length > maxCode {
					return 0, fmt.Errorf("%w: a code has %d bits", ErrParallel, length)
				}
				if in.read(1) == 0 {
					break
				}
				length += 1 - 2*in.read(1)
			}
			lengths[s] = byte(length)
		}
		if err := d.trees[i].build(lengths); err != nil {
			return 0, err
		}
	}
	return uint16(used + 1), nil
}

// symbols undoes Huffman coding and move-to-front into d.next's low bytes, and
// links the entries. It returns how many there are.
func (d *decoder) symbols(in *bitReader) (int, error) {
	var mtf [256]byte
	endOfBlock, err := d.head(in, &mtf)
	if err != nil {
		return 0, err
	}
	var counts [256]uint32
	next := d.next
	n, length, power := 0, 0, 1
	for _, s := range d.selectors {
		t := &d.trees[s]
		for range groupLength {
			if in.have < maxCode {
				in.fill()
			}
			e := t.root[in.word>>(64-rootBits)]
			symbol, size := e>>5, uint(e&31)
			if e == 0 {
				var ok bool
				if symbol, size, ok = t.long(in.word); !ok {
					return 0, fmt.Errorf("%w: a code that no tree has", ErrParallel)
				}
			}
			in.word <<= size
			in.have -= size
			if symbol <= 1 {
				// A run's length in digits 1 and 2 to the base of 2.
				if power > maxBlock {
					return 0, fmt.Errorf("%w: a run of more than %d bytes", ErrParallel, maxBlock)
				}
				length += power << symbol
				power <<= 1
				continue
			}
			if length > 0 {
				if length > len(next)-n {
					return 0, fmt.Errorf("%w: a block of more than %d bytes", ErrParallel, maxBlock)
				}
				v := mtf[0]
				counts[v] += uint32(length)
				fill := next[n : n+length]
				for i := range fill {
					fill[i] = uint32(v)
				}
				n += length
				length, power = 0, 1
			}
			if symbol == endOfBlock {
				d.link(n, &counts)
				return n, nil
			}
			if n == len(next) {
				return 0, fmt.Errorf("%w: a block of more than %d bytes", ErrParallel, maxBlock)
			}
			v := mtf[symbol-1]
			copy(mtf[1:symbol], mtf[:symbol-1])
			mtf[0] = v
			counts[v]++
			next[n] = uint32(v)
			n++
		}
	}
	return 0, fmt.Errorf("%w: a block without an end", ErrParallel)
}

// link puts into each of the n entries which one follows.
func (d *decoder) link(n int, counts *[256]uint32) {
	var sum uint32
	for i, c := range counts {
		counts[i] = sum
		sum += c
	}
	next := d.next[:n]
	for i := range next {
		v := byte(next[i])
		next[counts[v]] |= uint32(i) << 8
		counts[v]++
	}
}

// invert follows the n entries from start on and writes their bytes to d.plain.
func (d *decoder) invert(n int, start uint32) {
	next, plain := d.next[:n], d.plain[:n]
	at := next[start] >> 8
	for i := range plain {
		e := next[at]
		plain[i] = byte(e)
		at = e >> 8
	}
}

// expand undoes the first run-length coding: four equal bytes are followed by how
// many more there are. It returns the checksum.
func (d *decoder) expand(p []byte, out *content) uint32 {
	out.literal, out.runs = out.literal[:0], out.runs[:0]
	crc, summed := ^uint32(0), 0
	var open run
	flush := func() {
		if open.n >= longRun {
			open.at = len(out.literal)
			crc = d.crc.update(crc, out.literal[summed:])
			crc = d.crc.repeat(crc, open.value, open.n)
			summed = open.at
			out.runs = append(out.runs, open)
		} else {
			for ; open.n > 0; open.n-- {
				out.literal = append(out.literal, open.value)
			}
		}
		open.n = 0
	}
	for from, i := 0, 0; ; {
		switch {
		case i+4 > len(p):
			flush()
			out.literal = append(out.literal, p[from:]...)
			return ^d.crc.update(crc, out.literal[summed:])
		case p[i+3] != p[i+2]:
			i += 3
			continue
		case p[i+2] != p[i+1]:
			i += 2
			continue
		case p[i+1] != p[i]:
			i++
			continue
		}
		if from < i || open.value != p[i] {
			flush()
			out.literal = append(out.literal, p[from:i]...)
			open.value = p[i]
		}
		open.n += 4
		if i+4 < len(p) {
			open.n += int(p[i+4])
		}
		i += 5
		from = min(i, len(p))
	}
}
