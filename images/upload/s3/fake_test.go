package s3

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fake is a store with one bucket, as far as this package speaks to it, from
// Amazon's API reference. A real one judges the same tests in "make upload-test".
type fake struct {
	// refuse may answer a request in the store's place.
	refuse func(w http.ResponseWriter, r *http.Request) bool
	// plain stores know neither SHA-256 of parts nor conditions.
	plain bool

	mu      sync.Mutex
	now     time.Time
	objects map[string]kept
	uploads map[string]*growing
	lastID  int
	puts    []string // keys, and key#part, in the order in which they came
}

type kept struct {
	body   []byte
	header http.Header
	etag   string
	sum    string
	at     time.Time
}

type growing struct {
	key    string
	header http.Header
	parts  map[int]kept
	at     time.Time
}

const (
	bucket    = "vault"
	accessKey = "operator"
)

func newFake() *fake {
	return &fake{now: time.Unix(1_790_000_000, 0).UTC(), objects: map[string]kept{}, uploads: map[string]*growing{}}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.refuse != nil && f.refuse(w, r) {
		return
	}
	if !strings.Contains(r.Header.Get("Authorization"), "Credential="+accessKey+"/") && !f.signed(r) && !f.public(r) {
		complain(w, http.StatusForbidden, "InvalidAccessKeyId")
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		complain(w, http.StatusBadRequest, "IncompleteBody")
		return
	}
	if sum := r.Header.Get("X-Amz-Content-Sha256"); len(sum) == 64 && sum != hexSum(body) {
		complain(w, http.StatusBadRequest, "XAmzContentSHA256Mismatch")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path, _ := strings.CutPrefix(r.URL.Path, "/")
	b, key, _ := strings.Cut(path, "/")
	q := r.URL.Query()
	switch {
	case b != bucket:
		complain(w, http.StatusNotFound, "NoSuchBucket")
	case key == "" && q.Has("location"):
		reply(w, struct {
			XMLName xml.Name `xml:"LocationConstraint"`
		}{})
	case key == "" && q.Has("uploads"):
		f.listUploads(w, q.Get("prefix"))
	case key == "" && r.Method == http.MethodGet:
		f.list(w, q.Get("prefix"))
	case key == "":
	case q.Has("uploads"):
		f.lastID++
		id := "upload-" + strconv.Itoa(f.lastID)
		f.uploads[id] = &growing{key, r.Header.Clone(), map[int]kept{}, f.now}
		reply(w, struct {
			XMLName     xml.Name `xml:"InitiateMultipartUploadResult"`
			Bucket, Key string
			UploadID    string `xml:"UploadId"`
		}{Bucket: bucket, Key: key, UploadID: id})
	case q.Has("uploadId"):
		f.multipart(w, r, key, q.Get("uploadId"), body)
	default:
		f.object(w, r, key, body)
	}
}

// signed tells whether a query allows a request. The method is part of the signature,
// which is made for GET.
func (f *fake) signed(r *http.Request) bool {
	q := r.URL.Query()
	f.mu.Lock()
	defer f.mu.Unlock()
	begin, err := time.Parse("20060102T150405Z", q.Get("X-Amz-Date"))
	seconds, serr := strconv.Atoi(q.Get("X-Amz-Expires"))
	return err == nil && serr == nil && strings.HasPrefix(q.Get("X-Amz-Credential"), accessKey+"/") && q.Get("X-Amz-Signature") != "" &&
		r.Method == http.MethodGet && !f.now.After(begin.Add(time.Duration(seconds)*time.Second))
}

// public tells whether everybody may make a request.
func (f *fake) public(r *http.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && f.objects[key].header.Get("X-Amz-Acl") == "public-read"
}

func (f *fake) object(w http.ResponseWriter, r *http.Request, key string, body []byte) {
	o, there := f.objects[key]
	switch r.Method {
	case http.MethodPut:
		match, except := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
		switch {
		case f.plain && match+except != "":
			complain(w, http.StatusNotImplemented, "NotImplemented")
			return
		case match != "" && (!there || strings.Trim(match, `"`) != o.etag), except != "" && there:
			complain(w, http.StatusPreconditionFailed, "PreconditionFailed")
			return
		}
		f.puts = append(f.puts, key)
		o = f.keep(body, r.Header.Clone())
		f.objects[key] = o
		w.Header().Set("ETag", `"`+o.etag+`"`)
	case http.MethodDelete:
		delete(f.objects, key)
		w.WriteHeader(http.StatusNoContent)
	default:
		if !there {
			complain(w, http.StatusNotFound, "NoSuchKey")
			return
		}
		for k, v := range o.header {
			if strings.HasPrefix(k, "X-Amz-Meta-") {
				w.Header()[k] = v
			}
		}
		if r.Header.Get("X-Amz-Checksum-Mode") == "ENABLED" && o.sum != "" {
			w.Header().Set("X-Amz-Checksum-Sha256", o.sum)
		}
		w.Header().Set("ETag", `"`+o.etag+`"`)
		w.Header().Set("Last-Modified", o.at.Format(http.TimeFormat))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.body))
	}
}

func (f *fake) keep(body []byte, header http.Header) kept {
	sum := md5.Sum(body)
	return kept{body: body, header: header, etag: hex.EncodeToString(sum[:]), at: f.now}
}

func (f *fake) multipart(w http.ResponseWriter, r *http.Request, key, id string, body []byte) {
	u := f.uploads[id]
	if u == nil || u.key != key {
		complain(w, http.StatusNotFound, "NoSuchUpload")
		return
	}
	switch r.Method {
	case http.MethodPut:
		n, _ := strconv.Atoi(r.URL.Query().Get("partNumber"))
		part := f.keep(body, nil)
		if want := r.Header.Get("X-Amz-Checksum-Sha256"); want != "" && !f.plain {
			sum := sha256.Sum256(body)
			if part.sum = base64.StdEncoding.EncodeToString(sum[:]); part.sum != want {
				complain(w, http.StatusBadRequest, "BadDigest")
				return
			}
			w.Header().Set("X-Amz-Checksum-Sha256", part.sum)
		}
		f.puts = append(f.puts, fmt.Sprintf("%s#%d", key, n))
		u.parts[n] = part
		w.Header().Set("ETag", `"`+part.etag+`"`)
	case http.MethodGet:
		type part struct {
			PartNumber     int
			ETag           string
			Size           int
			ChecksumSHA256 string `xml:",omitempty"`
		}
		// Two to a page.
		after, _ := strconv.Atoi(r.URL.Query().Get("part-number-marker"))
		var page []part
		more := false
		for _, n := range slices.Sorted(maps.Keys(u.parts)) {
			if n > after && len(page) < 2 {
				page = append(page, part{n, `"` + u.parts[n].etag + `"`, len(u.parts[n].body), u.parts[n].sum})
			} else if n > after {
				more = true
			}
		}
		last := 0
		if len(page) > 0 {
			last = page[len(page)-1].PartNumber
		}
		reply(w, struct {
			XMLName              xml.Name `xml:"ListPartsResult"`
			NextPartNumberMarker int
			IsTruncated          bool
			Part                 []part
		}{NextPartNumberMarker: last, IsTruncated: more, Part: page})
	case http.MethodDelete:
		delete(f.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPost:
		f.complete(w, u, id, body)
	}
}

func (f *fake) complete(w http.ResponseWriter, u *growing, id string, body []byte) {
	var want struct {
		Part []struct {
			PartNumber           int
			ETag, ChecksumSHA256 string
		}
	}
	if err := xml.Unmarshal(body, &want); err != nil {
		complain(w, http.StatusBadRequest, "MalformedXML")
		return
	}
	var whole []byte
	sums := sha256.New()
	for _, p := range want.Part {
		part, ok := u.parts[p.PartNumber]
		if !ok || part.etag != strings.Trim(p.ETag, `"`) || part.sum != p.ChecksumSHA256 {
			complain(w, http.StatusBadRequest, "InvalidPart")
			return
		}
		whole = append(whole, part.body...)
		sum := sha256.Sum256(part.body)
		sums.Write(sum[:])
	}
	o := f.keep(whole, u.header)
	if !f.plain {
		o.sum = fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(sums.Sum(nil)), len(want.Part))
	}
	f.objects[u.key] = o
	delete(f.uploads, id)
	reply(w, struct {
		XMLName xml.Name `xml:"CompleteMultipartUploadResult"`
		Bucket  string
		Key     string
		ETag    string
	}{Bucket: bucket, Key: u.key, ETag: o.etag})
}

func (f *fake) list(w http.ResponseWriter, prefix string) {
	type content struct {
		Key          string
		LastModified string
		Size         int
		ETag         string
	}
	var all []content
	for _, key := range slices.Sorted(maps.Keys(f.objects)) {
		if o := f.objects[key]; strings.HasPrefix(key, prefix) {
			all = append(all, content{key, o.at.Format(time.RFC3339), len(o.body), o.etag})
		}
	}
	reply(w, struct {
		XMLName  xml.Name `xml:"ListBucketResult"`
		KeyCount int
		Contents []content
	}{KeyCount: len(all), Contents: all})
}

func (f *fake) listUploads(w http.ResponseWriter, prefix string) {
	type one struct {
		Key       string
		UploadID  string `xml:"UploadId"`
		Initiated string
	}
	var all []one
	for _, id := range slices.Sorted(maps.Keys(f.uploads)) {
		if u := f.uploads[id]; strings.HasPrefix(u.key, prefix) {
			all = append(all, one{u.key, id, u.at.Format(time.RFC3339)})
		}
	}
	reply(w, struct {
		XMLName xml.Name `xml:"ListMultipartUploadsResult"`
		Upload  []one
	}{Upload: all})
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func complain(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>the store says %s</Message></Error>", code, code)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/xml")
	if err := xml.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}
