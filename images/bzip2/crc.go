package bzip2

import "encoding/binary"

// polynomial of CRC-32 as bzip2 has it: the highest bit first.
const polynomial = 0x04c11db7

// crcTables are for eight bytes at a time: table k is for a byte that k more
// follow.
type crcTables [8][256]uint32

func newCRCTables() *crcTables {
	t := new(crcTables)
	for i := range t[0] {
		c := uint32(i) << 24
		for range 8 {
			c = timesX(c)
		}
		t[0][i] = c
	}
	for k := 1; k < len(t); k++ {
		for i := range t[k] {
			c := t[k-1][i]
			t[k][i] = c<<8 ^ t[0][c>>24]
		}
	}
	return t
}

// update adds bytes to a checksum, which starts as all ones and is inverted in
// the end.
func (t *crcTables) update(c uint32, p []byte) uint32 {
	for len(p) >= 8 {
		v := binary.BigEndian.Uint64(p) ^ uint64(c)<<32
		c = t[7][v>>56] ^ t[6][v>>48&0xff] ^ t[5][v>>40&0xff] ^ t[4][v>>32&0xff] ^
			t[3][v>>24&0xff] ^ t[2][v>>16&0xff] ^ t[1][v>>8&0xff] ^ t[0][v&0xff]
		p = p[8:]
	}
	for _, b := range p {
		c = c<<8 ^ t[0][byte(c>>24)^b]
	}
	return c
}

// repeat adds n times the same byte, in steps that grow with n's logarithm. One
// byte takes c to c·x⁸ + b·x³² modulo the polynomial; doing that twice has the
// same form, c·m + v, and so on.
func (t *crcTables) repeat(c uint32, b byte, n int) uint32 {
	m, v := uint32(1)<<8, t[0][b]
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			c = times(c, m) ^ v
		}
		v = times(v, m) ^ v
		m = times(m, m)
	}
	return c
}

// times multiplies two polynomials modulo the checksum's.
func times(a, b uint32) uint32 {
	var product uint32
	for ; b != 0; b >>= 1 {
		if b&1 != 0 {
			product ^= a
		}
		a = timesX(a)
	}
	return product
}

func timesX(a uint32) uint32 {
	if a&(1<<31) != 0 {
		return a<<1 ^ polynomial
	}
	return a << 1
}
