//go:build bench

package benchupload

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"
)

// sink takes bytes, and what else a protocol has to keep for the time of an upload.
type sink struct {
	counter
	// hash is the digest that the real server computes.
	hash func() hash.Hash
	// protocol answers all but curl.
	protocol func(w http.ResponseWriter, r *http.Request)

	// buffer is what is read at once, in bytes.
	buffer  int
	buffers sync.Pool

	mu   sync.Mutex
	kept map[string]kept
	sum  hash.Hash // of an object that comes in pieces
}

// kept is a small object, or what is told of a large one.
type kept struct {
	header http.Header
	body   []byte
	size   int64
}

// newSink takes nil for a server that computes nothing.
func newSink(h func() hash.Hash) *sink {
	if h == nil {
		h = func() hash.Hash { return nothing{} }
	}
	return &sink{hash: h, buffer: 256 << 10, kept: map[string]kept{}, sum: h()}
}

// nothing is no digest.
type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }
func (nothing) Sum(b []byte) []byte         { return b }
func (nothing) Reset()                      {}
func (nothing) Size() int                   { return 0 }
func (nothing) BlockSize() int              { return 1 }

// ServeHTTP implements http.Handler. A PUT of curl begins a new round.
func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/curl" {
		if _, err := s.take(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.kept, s.sum = map[string]kept{}, s.hash()
		return
	}
	s.protocol(w, r)
}

// take reads bytes of the image.
func (s *sink) take(r io.Reader) (hash.Hash, error) {
	h := s.hash()
	return h, s.into(h, r)
}

func (s *sink) into(h hash.Hash, r io.Reader) error {
	buffer, ok := s.buffers.Get().([]byte)
	if !ok {
		buffer = make([]byte, s.buffer)
	}
	defer s.buffers.Put(buffer) //nolint:staticcheck // A slice's header is nothing beside what a request costs.
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, r, buffer)
	s.n.Add(n)
	return err
}

func (s *sink) get(key string) (kept, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.kept[key]
	return k, ok
}

func (s *sink) keep(key string, k kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept[key] = k
}

// store is a bucket of S3.
func (s *sink) store(w http.ResponseWriter, r *http.Request) {
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q := r.URL.Query()
	answer := func(v any) { _ = xml.NewEncoder(w).Encode(v) }
	switch {
	case r.Method == http.MethodGet && q.Has("uploads"):
		answer(struct {
			XMLName xml.Name `xml:"ListMultipartUploadsResult"`
		}{})
	case q.Has("uploads"):
		s.keep("upload", kept{header: r.Header.Clone()})
		answer(struct {
			XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
			UploadID string   `xml:"UploadId"`
		}{UploadID: "1"})
	case r.Method == http.MethodPut && q.Has("uploadId"):
		sum, err := s.take(r.Body)
		if err != nil || base64.StdEncoding.EncodeToString(sum.Sum(nil)) != r.Header.Get("X-Amz-Checksum-Sha256") {
			http.Error(w, "<Error><Code>BadDigest</Code></Error>", http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		u := s.kept["upload"]
		u.size += r.ContentLength
		s.kept["upload"] = u
		s.mu.Unlock()
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("X-Amz-Checksum-Sha256", r.Header.Get("X-Amz-Checksum-Sha256"))
	case r.Method == http.MethodPost && q.Has("uploadId"):
		u, _ := s.get("upload")
		s.keep(key, u)
		answer(struct {
			XMLName           xml.Name `xml:"CompleteMultipartUploadResult"`
			Bucket, Key, ETag string
		}{Bucket: "bench", Key: key, ETag: `"1"`})
	case r.Method == http.MethodPut:
		b, _ := io.ReadAll(r.Body)
		s.keep(key, kept{header: r.Header.Clone(), body: b, size: int64(len(b))})
		w.Header().Set("ETag", `"1"`)
	default:
		k, ok := s.get(key)
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
			return
		}
		for name, v := range k.header {
			if strings.HasPrefix(name, "X-Amz-Meta-") {
				w.Header()[name] = v
			}
		}
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
		w.Header().Set("Content-Length", fmt.Sprint(k.size))
		_, _ = w.Write(k.body)
	}
}

// registry is one of OCI's.
func (s *sink) registry(w http.ResponseWriter, r *http.Request) {
	at := r.URL.Path
	switch {
	case strings.HasSuffix(at, "/blobs/uploads/") && r.Method == http.MethodPost, r.Method == http.MethodPatch:
		if r.Method == http.MethodPatch {
			sum, err := s.take(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			s.keep("patched", kept{body: sum.Sum(nil)})
		}
		w.Header().Set("Location", "/v2/bench/blobs/uploads/1")
		w.Header().Set("Range", "0-0")
		w.WriteHeader(http.StatusAccepted)
	case strings.Contains(at, "/blobs/uploads/") && r.Method == http.MethodPut:
		digest := r.URL.Query().Get("digest")
		if p, _ := s.get("patched"); "sha256:"+hex.EncodeToString(p.body) != digest {
			http.Error(w, `{"errors":[{"code":"DIGEST_INVALID"}]}`, http.StatusBadRequest)
			return
		}
		s.keep("/v2/bench/blobs/"+digest, kept{})
		w.WriteHeader(http.StatusCreated)
	case strings.Contains(at, "/manifests/") && r.Method == http.MethodPut:
		b, _ := io.ReadAll(r.Body)
		s.keep(at, kept{header: http.Header{"Content-Type": r.Header["Content-Type"]}, body: b})
		w.WriteHeader(http.StatusCreated)
	case strings.Contains(at, "/referrers/"):
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		fmt.Fprint(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	case at == "/v2/":
	default:
		k, ok := s.get(at)
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`)
			return
		}
		if ct := k.header.Get("Content-Type"); ct != "" {
			w.Header().Set("Content-Type", ct)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(k.body)))
		_, _ = w.Write(k.body)
	}
}

type object = map[string]any

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// glance is OpenStack's image service, with Keystone.
func (s *sink) glance(w http.ResponseWriter, r *http.Request) {
	var img object
	if k, ok := s.get("image"); ok {
		_ = json.Unmarshal(k.body, &img)
	}
	put := func(o object) {
		b, _ := json.Marshal(o)
		s.keep("image", kept{body: b})
	}
	switch at := strings.TrimPrefix(r.URL.Path, "/image/v2/"); {
	case strings.HasSuffix(at, "/auth/tokens"):
		w.Header().Set("X-Subject-Token", "t")
		answerJSON(w, http.StatusCreated, object{"token": object{
			"expires_at": "2099-01-01T00:00:00.000000Z", "project": object{"id": "p", "name": "demo"},
			"catalog": []object{{"type": "image", "endpoints": []object{{"interface": "public", "region": "r", "region_id": "r", "url": "http://" + r.Host + "/image"}}}},
		}})
	case at == "images" && r.Method == http.MethodPost:
		_ = json.NewDecoder(r.Body).Decode(&img)
		img["status"] = "queued"
		put(img)
		answerJSON(w, http.StatusCreated, img)
	case at == "images":
		all := []object{}
		if img != nil {
			all = append(all, img)
		}
		answerJSON(w, http.StatusOK, object{"images": all})
	case strings.HasSuffix(at, "/file"):
		sum, err := s.take(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		img["status"], img["os_hash_algo"], img["os_hash_value"] = "active", "sha512", hex.EncodeToString(sum.Sum(nil))
		put(img)
		w.WriteHeader(http.StatusNoContent)
	case img != nil:
		answerJSON(w, http.StatusOK, img)
	default:
		answerJSON(w, http.StatusNotFound, object{})
	}
}
