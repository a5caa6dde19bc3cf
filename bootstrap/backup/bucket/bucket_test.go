package bucket

import (
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

// fake is a store with one bucket, as far as this package speaks to it, from Amazon's API
// reference. A real one judges the same in "make upload-test".
type fake struct {
	mu      sync.Mutex
	objects map[string][]byte
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !strings.Contains(r.Header.Get("Authorization"), "Credential=server/") {
		complain(w, http.StatusForbidden, "InvalidAccessKeyId")
		return
	}
	b, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	body, there := f.objects[key]
	switch {
	case b != "vault":
		complain(w, http.StatusNotFound, "NoSuchBucket")
	case key == "":
		type content struct {
			Key  string
			Size int
		}
		var all []content
		for _, k := range slices.Sorted(maps.Keys(f.objects)) {
			if rest, ok := strings.CutPrefix(k, r.URL.Query().Get("prefix")); ok && !strings.Contains(rest, "/") {
				all = append(all, content{k, len(f.objects[k])})
			}
		}
		w.Header().Set("Content-Type", "application/xml")
		_ = xml.NewEncoder(w).Encode(struct {
			XMLName  xml.Name `xml:"ListBucketResult"`
			Contents []content
		}{Contents: all})
	case r.Method == http.MethodPut:
		got, err := io.ReadAll(r.Body)
		if err != nil {
			complain(w, http.StatusBadRequest, "IncompleteBody")
			return
		}
		f.objects[key] = got
		w.Header().Set("ETag", `"x"`)
	case r.Method == http.MethodDelete:
		delete(f.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case !there:
		complain(w, http.StatusNotFound, "NoSuchKey")
	default:
		w.Header().Set("ETag", `"x"`)
		w.Header().Set("Last-Modified", time.Unix(0, 0).UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if r.Method != http.MethodHead {
			_, _ = w.Write(body)
		}
	}
}

func complain(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
}

// try is what every store has to stand: c is of an empty bucket.
func try(t *testing.T, c Config) {
	t.Helper()
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	noon := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	text := map[string]string{}
	for i := range 3 {
		name := files.Name("demo", noon.Add(time.Duration(i)*time.Hour))
		text[name] = strings.Repeat(name, 5000+i)
		f, ok := files.Named(name, int64(len(text[name])))
		if !ok {
			t.Fatalf("%s is no name", name)
		}
		if err := b.Put(t.Context(), f, strings.NewReader(text[name])); err != nil {
			t.Fatal(err)
		}
	}
	all, err := b.List(t.Context())
	if err != nil || len(all) != 3 || all[0].Name != files.Name("demo", noon.Add(2*time.Hour)) {
		t.Fatalf("got %v, %v", all, err)
	}
	for _, f := range all {
		in, err := b.Open(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(in)
		if err != nil || string(got) != text[f.Name] || int64(len(got)) != f.Size {
			t.Errorf("%s: got %d bytes, %v", f.Name, len(got), err)
		}
		in.Close()
	}
	if err := b.Remove(t.Context(), all[2]); err != nil {
		t.Fatal(err)
	}
	if left, err := b.List(t.Context()); err != nil || len(left) != 2 || left[1] != all[1] {
		t.Errorf("got %v, %v", left, err)
	}
	in, err := b.Open(t.Context(), all[2])
	if err == nil {
		_, err = io.ReadAll(in)
	}
	if err == nil {
		t.Error("what was removed is there")
	}
	c.AccessKey = "stranger"
	stranger, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.List(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "looking for backups in s3://vault/backups/: ") {
		t.Errorf("a stranger: %v", err)
	}
}

func TestABucketKeepsBackups(t *testing.T) {
	t.Parallel()
	f := &fake{objects: map[string][]byte{"images/x": []byte("mine"), "backups/notes.txt": []byte("read"), "backups/old/" + files.Name("demo", time.Unix(0, 0)): nil}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	try(t, Config{Endpoint: s.URL, Bucket: "vault", Region: "us-east-1", Prefix: "backups", AccessKey: "server", SecretKey: "secret"})
	if string(f.objects["images/x"]) != "mine" || string(f.objects["backups/notes.txt"]) != "read" || len(f.objects) != 5 {
		t.Errorf("what others keep there: %v", slices.Sorted(maps.Keys(f.objects)))
	}
}

func TestABucketThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	good := Config{Endpoint: "https://s3.example", Bucket: "b", Prefix: "p", AccessKey: "a", SecretKey: "s"}
	for want, change := range map[string]func(*Config){
		`reading the store's endpoint "s3.example": want http:// or https://, a host and no path`:  func(c *Config) { c.Endpoint = "s3.example" },
		`reading the store's endpoint "https://a/b": want http:// or https://, a host and no path`: func(c *Config) { c.Endpoint = "https://a/b" },
		"reading the store's bucket and prefix: one is empty":                                      func(c *Config) { c.Bucket = "" },
		"reading the store's keys: access key or secret key is empty":                              func(c *Config) { c.SecretKey = "" },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
