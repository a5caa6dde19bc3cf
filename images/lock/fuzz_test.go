package lock_test

import (
	"bytes"
	"testing"

	"github.com/imagectl/imagectl/images/lock"
)

// FuzzParse takes what Parse accepts through Encode, which must give the same
// lock again.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := lock.Parse(b)
		if err != nil {
			return
		}
		first, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := lock.Parse(first)
		if err != nil {
			t.Fatalf("reading what was written: %v\n%s", err, first)
		}
		second, err := again.Encode()
		if err != nil || !bytes.Equal(first, second) {
			t.Errorf("got\n%s%v, want\n%s", second, err, first)
		}
	})
}
