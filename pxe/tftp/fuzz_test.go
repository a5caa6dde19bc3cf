package tftp

import (
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/quirk"
)

// A request that is taken keeps its sense under every effect, names a file without a
// directory, and never grows.
func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		read("a", "octet"), read(`C:\x\Snponly.EFI`+"\xff", "OCTET", "BlkSize", "1468", "tsize", "0"), read("../../etc/passwd", "netascii", "blksize", "-1"),
		read("a", "octet", "blksize", "99999999999999999999"), "\x00\x02a\x00octet\x00", "\x00\x01\x00\x00\x00\x00", "",
	} {
		f.Add([]byte(s), 512)
	}
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		r, err := ParseRequest(b)
		if err != nil {
			return
		}
		if name := r.File(); strings.ContainsAny(name, `\`) || strings.Contains(strings.TrimPrefix(name, "/"), "/") {
			t.Errorf("%q names %q", b, name)
		}
		if n := r.BlockSize(1468); n < 8 || n > 1468 {
			t.Errorf("%q: blocks of %d bytes", b, n)
		}
		for _, e := range []quirk.Effect{{}, {NoBlockSize: true}, {BlockSize: max(8, size)}} {
			p := append([]byte(nil), b...)
			if !normalise(p) {
				t.Fatalf("%q was parsed and is not well formed", b)
			}
			n := comply(p, e)
			again, err := ParseRequest(p[:n])
			if err != nil || n > len(b) || again.Name != r.Name || e.BlockSize > 0 && again.BlockSize(1468) > max(e.BlockSize, 512) {
				t.Errorf("%q under %+v becomes %q, %v", b, e, p[:n], err)
			}
		}
	})
}
