package lock_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/lock"
)

const digest = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestWriteThenReadGivesTheSameLockAndSortedBytes(t *testing.T) {
	t.Parallel()
	l, err := lock.New(digest, []lock.Blob{
		{ID: lock.Kubelet, Source: "bin/kubelet", SHA256: digest, Size: 2},
		{ID: lock.Agent, Source: "https://example.org/bootstrapd?a=1&b=2", SHA256: digest, Size: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), lock.FileName)
	if err := lock.Write(path, l); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(first), "?a=1&b=2") {
		t.Errorf("URL is escaped in %s", first)
	}
	got, err := lock.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Inputs[0].ID != lock.Agent {
		t.Errorf("got first input %q, want %q", got.Inputs[0].ID, lock.Agent)
	}
	if err := lock.Write(path, got); err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(first) != string(second) {
		t.Errorf("read and written again: got\n%s\nwant\n%s", second, first)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("got %d files in the directory, want only the lock file", len(entries))
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const b = `{"id":"a","source":"s","sha256":"` + digest + `","size":1}`
	for name, tc := range map[string]struct{ in, want string }{
		"an unknown key":          {`{"version":1,"wants":"` + digest + `","inputs":[],"x":1}`, `unknown field "x"`},
		"another version":         {`{"version":2,"wants":"` + digest + `","inputs":[]}`, "version is 2, this imagectl knows 1"},
		"a repeated input":        {`{"version":1,"wants":"` + digest + `","inputs":[` + b + `,` + b + `]}`, "sorted and unique"},
		"a short digest":          {`{"version":1,"wants":"` + digest + `","inputs":[{"id":"a","source":"s","sha256":"ab","size":1}]}`, "64 lower-case"},
		"a negative size":         {`{"version":1,"wants":"` + digest + `","inputs":[{"id":"a","source":"s","sha256":"` + digest + `","size":-1}]}`, "size is -1"},
		"two values in one file":  {`{"version":1,"wants":"` + digest + `","inputs":[]} {}`, "more than one value"},
		"a merge conflict marker": {"<<<<<<< HEAD\n{}", "parsing JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := lock.Parse([]byte(tc.in))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestReadOfAMissingFileIsErrNotExist(t *testing.T) {
	t.Parallel()
	if _, err := lock.Read(filepath.Join(t.TempDir(), "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}
