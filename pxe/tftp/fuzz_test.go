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
			again := r.Complying(e)
			if again.Name != r.Name || again.BlockSize(1468) > max(8, r.BlockSize(1468)) && !e.NoBlockSize || e.BlockSize > 0 && again.BlockSize(1468) > max(e.BlockSize, 512) {
				t.Errorf("%q under %+v becomes %+v", b, e, again)
			}
			if a := again.acknowledge(1468, 1000); a != nil && (len(a) < 2+len("tsize")+3 || a[1] != opOAck || a[len(a)-1] != 0 || len(a) > 40) {
				t.Errorf("%q is answered %q", b, a)
			}
		}
	})
}
