package bzip2

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// bitByBit is the checksum as the format's description has it.
func bitByBit(c uint32, p []byte) uint32 {
	for _, b := range p {
		c ^= uint32(b) << 24
		for range 8 {
			c = timesX(c)
		}
	}
	return c
}

func TestTheChecksumOfBytesAndOfRunsIsThatOfTheirBits(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 3))
	tables := newCRCTables()
	p := make([]byte, 1000)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	for _, n := range []int{0, 1, 7, 8, 9, 15, 16, 1000} {
		start := rnd.Uint32()
		if got, want := tables.update(start, p[:n]), bitByBit(start, p[:n]); got != want {
			t.Errorf("%d bytes: got %08x, want %08x", n, got, want)
		}
		for _, b := range []byte{0, 1, 0xff} {
			if got, want := tables.repeat(start, b, n), bitByBit(start, bytes.Repeat([]byte{b}, n)); got != want {
				t.Errorf("%d times %02x: got %08x, want %08x", n, b, got, want)
			}
		}
	}
	// As long a run as a block can have.
	const most = maxBlock / 5 * 259
	if got, want := tables.repeat(^uint32(0), 0, most), tables.update(^uint32(0), make([]byte, most)); got != want {
		t.Errorf("%d zeros: got %08x, want %08x", most, got, want)
	}
}

func TestTheFirstRunLengthCodingIsUndone(t *testing.T) {
	t.Parallel()
	d := newDecoder(newCRCTables())
	zeros := func(runs int) (coded []byte) {
		for range runs {
			coded = append(coded, 0, 0, 0, 0, 251)
		}
		return coded
	}
	for name, coded := range map[string][]byte{
		"nothing":                        nil,
		"three equal bytes":              []byte("aaa"),
		"four and no more":               []byte("aaaa\x00b"),
		"four at the end":                []byte("xaaaa"),
		"five equal bytes and a count":   []byte("aaaa\x01a"),
		"a count that is the byte":       append([]byte("aaaa"), 'a', 'a', 'a', 'a', 'b'),
		"pairs":                          []byte("aabbccaabbbccddddddd"),
		"two runs of one byte":           []byte("aaaa\x03aaaa\x02b"),
		"a run behind another":           []byte("aaaa\x03bbbb\x02c"),
		"a long run alone":               zeros(100),
		"a long run with a head":         append([]byte("head"), zeros(100)...),
		"a long run with a tail of less": append(zeros(100), 0, 0, 0),
		"long runs of two bytes":         append(zeros(100), bytes.Repeat([]byte("\xff\xff\xff\xff\xfb"), 100)...),
		"a long run between others":      append(append([]byte("aaaa\x09"), zeros(100)...), "bbbb\x09"...),
	} {
		var want []byte
		equal := 0
		for i, b := range coded {
			if equal == 4 {
				want = append(want, bytes.Repeat([]byte{coded[i-1]}, int(b))...)
				equal = 0
				continue
			}
			if equal == 0 || coded[i-1] != b {
				equal = 0
			}
			equal++
			want = append(want, b)
		}
		var out content
		crc := d.expand(coded, &out)
		var got bytes.Buffer
		if err := out.writeTo(t.Context(), &got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: got %d bytes, want %d", name, got.Len(), len(want))
		}
		if want := ^bitByBit(^uint32(0), want); crc != want {
			t.Errorf("%s: got checksum %08x, want %08x", name, crc, want)
		}
	}
}
