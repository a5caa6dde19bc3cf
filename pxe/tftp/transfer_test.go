package tftp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"
)

func transferOf(t *testing.T, size int, fields ...string) (*transfer, []byte) {
	t.Helper()
	r, err := ParseRequest([]byte(read("a", append([]string{"octet"}, fields...)...)))
	if err != nil {
		t.Fatal(err)
	}
	content := program(size)
	x := newTransfer(r, from(1, 2000), time.Time{})
	if err := x.open(inMemory{bytes.NewReader(content)}, 1468); err != nil {
		t.Fatal(err)
	}
	return x, content
}

// load acknowledges everything and returns what came, with the number of blocks.
func load(t *testing.T, x *transfer) ([]byte, int) {
	t.Helper()
	var got []byte
	for blocks := 0; ; {
		p := x.packet(nil)
		number := binary.BigEndian.Uint16(p[2:])
		switch p[1] {
		case opOAck:
			number = 0
		case opData:
			blocks++
			got = append(got, p[4:]...)
			if number != uint16(blocks) {
				t.Fatalf("block %d has the number %d", blocks, number)
			}
		default:
			t.Fatalf("got %x", p)
		}
		if next, whole, err := x.acknowledged(number - 1); next || whole || err != nil {
			t.Fatalf("an acknowledgement of the block before %d counts", number)
		}
		next, whole, err := x.acknowledged(number)
		if whole {
			return got, blocks
		}
		if !next || err != nil {
			t.Fatalf("the acknowledgement of block %d does not count: %v", number, err)
		}
	}
}

func TestFilesArriveWholeInBlocksOfEverySize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size   int
		fields []string
		blocks int
	}{
		{0, nil, 1},
		{511, nil, 1},
		{512, nil, 2},
		{5000, nil, 10},
		{5000, []string{"blksize", "1468"}, 4},
		{5000, []string{"blksize", "9000"}, 4},
		{5000, []string{"blksize", "7"}, 10},
		{5000, []string{"blksize", "much", "tsize", "0"}, 10},
		{2936, []string{"blksize", "1468", "tsize", "0"}, 3},
		{600_000, []string{"blksize", "8"}, 75_001}, // past 65,535 the numbers begin again
	} {
		x, content := transferOf(t, c.size, c.fields...)
		got, blocks := load(t, x)
		if !bytes.Equal(got, content) || blocks != c.blocks {
			t.Errorf("%d bytes with %q: %d bytes in %d blocks, want %d blocks, or they differ", c.size, c.fields, len(got), blocks, c.blocks)
		}
		if x.sent != int64(c.size) {
			t.Errorf("%d bytes with %q: %d were sent", c.size, c.fields, x.sent)
		}
	}
}

func TestOnlyOptionsThatAreUnderstoodAreAnswered(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fields []string
		want   string
	}{
		{nil, ""},
		{[]string{"windowsize", "4", "timeout", "3"}, ""},
		{[]string{"blksize", "1432"}, "\x00\x06blksize\x001432\x00"},
		{[]string{"blksize", "65464"}, "\x00\x06blksize\x001468\x00"},
		{[]string{"blksize", "8", "blksize", "1432"}, "\x00\x06blksize\x008\x00"},
		{[]string{"blksize", "-1"}, ""},
		{[]string{"tsize", "0", "windowsize", "4", "blksize", "512"}, "\x00\x06tsize\x005000\x00blksize\x00512\x00"},
	} {
		x, _ := transferOf(t, 5000, c.fields...)
		if string(x.oack) != c.want || (x.block == 0) != (c.want != "") {
			t.Errorf("%q is answered %q before block %d, want %q", c.fields, x.oack, x.block+1, c.want)
		}
	}
}

// RFC 2349 has the size of what is transferred: in netascii that is another one, and
// nobody knows which before all is read.
func TestNoSizeIsSaidOfWhatIsConverted(t *testing.T) {
	t.Parallel()
	r := mustParse(t, read("a", "NetASCII", "tsize", "0", "blksize", "512"))
	if got, want := string(r.acknowledge(1468, 5000)), "\x00\x06blksize\x00512\x00"; got != want {
		t.Errorf("it is answered %q, want %q", got, want)
	}
}

func TestWhenPacketsAreSentAgain(t *testing.T) {
	t.Parallel()
	x, _ := transferOf(t, 5000)
	repeats := func() (at []time.Duration, gaveUp time.Duration) {
		for n := 1; ; n++ {
			switch x.tick() {
			case repeat:
				at = append(at, time.Duration(n)*tick)
			case giveUp:
				return at, time.Duration(n) * tick
			}
		}
	}
	at, gaveUp := repeats()
	if got := fmt.Sprint(at[:4], len(at), gaveUp); got != "[500ms 1.2s 2.1s 3.2s] 10 16.5s" {
		t.Errorf("a lost packet is sent again at %s", got)
	}
	// What goes on begins anew.
	x, _ = transferOf(t, 5000)
	for range 10 {
		x.tick()
	}
	x.acknowledged(1)
	if again, _ := repeats(); !slices.Equal(again, at) {
		t.Errorf("after an acknowledgement a lost packet is sent again at %v, want %v", again, at)
	}
	// Who goes on for ever does not keep its place.
	x, _ = transferOf(t, 100_000, "blksize", "8")
	n := 0
	for ; n < 100_000 && x.tick() != giveUp; n++ {
		x.acknowledged(x.block)
	}
	if want := longest + 100_000/slowest; n != want {
		t.Errorf("a slow client keeps its place for %d ticks, want %d", n, want)
	}
}
