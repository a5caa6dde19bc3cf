package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// A snapshot is on the disk only if its digest fits, however it comes, and never over a file.
func TestASnapshotIsWholeOrNotThere(t *testing.T) {
	t.Parallel()
	whole := bytes.Repeat([]byte("database"), 512)
	sum := sha256.Sum256(whole)
	whole = append(whole, sum[:]...)
	damaged := bytes.Clone(whole)
	damaged[7] ^= 1
	broken := errors.New("the node is gone")
	for name, tc := range map[string]struct {
		content []byte
		chunk   int
		fails   error
		want    string
	}{
		"at once":          {whole, len(whole), nil, ""},
		"in small pieces":  {whole, 7, nil, ""},
		"damaged":          {damaged, 100, nil, "are not whole"},
		"cut off":          {whole[:len(whole)-512], 100, nil, "are not whole"},
		"empty":            {nil, 100, nil, "are not whole"},
		"ended in between": {whole, 100, broken, "the node is gone"},
	} {
		path := filepath.Join(t.TempDir(), "etcd.db")
		rest := tc.content
		size, err := saveSnapshot(path, func() ([]byte, error) {
			if len(rest) == 0 {
				return nil, io.EOF
			}
			if tc.fails != nil && len(rest) < len(tc.content)/2 {
				return nil, tc.fails
			}
			b := rest[:min(tc.chunk, len(rest))]
			rest = rest[len(b):]
			return b, nil
		})
		got, readErr := os.ReadFile(path)
		left, globErr := filepath.Glob(path + "*")
		if globErr != nil {
			t.Fatal(globErr)
		}
		if tc.want == "" {
			st, statErr := os.Stat(path)
			if err != nil || readErr != nil || statErr != nil || !bytes.Equal(got, whole) || size != int64(len(whole)) || st.Mode().Perm() != 0o600 || len(left) != 1 {
				t.Errorf("%s: %v %v, %d bytes, %v", name, err, readErr, size, left)
			}
			if _, err := saveSnapshot(path, func() ([]byte, error) { return nil, io.EOF }); err == nil || !strings.Contains(err.Error(), "is there already") {
				t.Errorf("%s: over a file: %v", name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || len(left) > 0 {
			t.Errorf("%s: %v, and there is %v", name, err, left)
		}
	}
}

// What is handed to a node is whole, or not sent.
func TestASnapshotIsCheckedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	whole := bytes.Repeat([]byte("database"), 512)
	sum := sha256.Sum256(whole)
	whole = append(whole, sum[:]...)
	all := sha256.Sum256(whole)
	got, err := checkSnapshot(iotest.OneByteReader(bytes.NewReader(whole)))
	if err != nil || got.GetSha256() != hex.EncodeToString(all[:]) || got.GetSize() != uint64(len(whole)) {
		t.Errorf("%v, %v", got, err)
	}
	for name, content := range map[string][]byte{"cut off": whole[:len(whole)-512], "empty": nil, "damaged": append([]byte("D"), whole[1:]...), "no digest": whole[:4096]} {
		if got, err := checkSnapshot(bytes.NewReader(content)); err == nil || !strings.Contains(err.Error(), "the digest at its end does not fit") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
