//go:build bench

package benchupload

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// amazon is EC2, the EBS direct API and Systems Manager.
func (s *sink) amazon(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.Contains(r.URL.Path, "/blocks/"):
		sum, err := s.take(r.Body)
		if err != nil || base64.StdEncoding.EncodeToString(sum.Sum(nil)) != r.Header.Get("X-Amz-Checksum") {
			http.Error(w, `{"message": "bad checksum"}`, http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "{}")
		return
	case strings.HasPrefix(r.URL.Path, "/snapshots/completion/"):
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"Status": "pending"}`)
		return
	case r.URL.Path == "/snapshots":
		answerJSON(w, http.StatusCreated, object{"SnapshotId": "snap-1", "BlockSize": 512 << 10})
		return
	case r.Header.Get("X-Amz-Target") == "AmazonSSM.PutParameter":
		b, _ := io.ReadAll(r.Body)
		s.keep("parameter", kept{body: b})
		fmt.Fprint(w, "{}")
		return
	case r.Header.Get("X-Amz-Target") != "":
		all := []json.RawMessage{}
		if k, ok := s.get("parameter"); ok {
			all = append(all, k.body)
		}
		answerJSON(w, http.StatusOK, object{"Parameters": all})
		return
	}
	b, _ := io.ReadAll(r.Body)
	form, err := url.ParseQuery(string(b))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, registered := s.get("ami")
	inner := ""
	switch action := form.Get("Action"); {
	case action == "RegisterImage":
		s.keep("ami", kept{})
		inner = "<imageId>ami-1</imageId>"
	case action == "DescribeSnapshots":
		inner = "<snapshotSet><item><snapshotId>snap-1</snapshotId><status>completed</status></item></snapshotSet>"
	case action == "DescribeImages" && registered:
		inner = "<imagesSet><item><imageId>ami-1</imageId><imageState>available</imageState></item></imagesSet>"
	}
	fmt.Fprintf(w, "<Response>%s</Response>", inner)
}

// azure is the resource manager, whose documents are kept as they come and are
// finished at once, and a page blob.
func (s *sink) azure(w http.ResponseWriter, r *http.Request) {
	at := r.URL.Path
	switch q := r.URL.Query(); {
	case q.Get("comp") == "pagelist":
		fmt.Fprint(w, "<PageList></PageList>")
		return
	case q.Get("comp") == "page":
		sum, err := s.take(r.Body)
		if err != nil || base64.StdEncoding.EncodeToString(sum.Sum(nil)) != r.Header.Get("Content-Md5") {
			http.Error(w, "<Error><Code>Md5Mismatch</Code></Error>", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
		return
	case strings.HasSuffix(at, "/beginGetAccess"):
		answerJSON(w, http.StatusOK, object{"accessSAS": "http://" + r.Host + "/blob?sig=1"})
		return
	case strings.HasSuffix(at, "/endGetAccess"):
		s.document(strings.TrimSuffix(at, "/endGetAccess"), func(p object) { p["diskState"] = "Unattached" })
		return
	case strings.HasSuffix(at, "/galleries/vms"):
		answerJSON(w, http.StatusOK, object{"name": "vms"})
		return
	case strings.HasSuffix(at, "/disks") || strings.HasSuffix(at, "/images"):
		answerJSON(w, http.StatusOK, object{"value": []object{}})
		return
	case strings.HasSuffix(at, "/versions"):
		all := []json.RawMessage{}
		s.mu.Lock()
		for key, k := range s.kept {
			if strings.HasPrefix(key, at+"/") {
				all = append(all, k.body)
			}
		}
		s.mu.Unlock()
		answerJSON(w, http.StatusOK, object{"value": all})
		return
	case r.Method == http.MethodPut:
		b, _ := io.ReadAll(r.Body)
		s.keep(at, kept{body: b})
		s.document(at, func(p object) { p["provisioningState"], p["diskState"] = "Succeeded", "ReadyToUpload" })
	case r.Method == http.MethodDelete:
		s.mu.Lock()
		delete(s.kept, at)
		s.mu.Unlock()
		return
	}
	k, ok := s.get(at)
	if !ok {
		answerJSON(w, http.StatusNotFound, object{"error": object{"code": "NotFound", "message": "it is not there"}})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(k.body)
}

// document changes the properties of one that is kept.
func (s *sink) document(at string, change func(properties object)) {
	k, _ := s.get(at)
	var d object
	if json.Unmarshal(k.body, &d) != nil {
		return
	}
	p, _ := d["properties"].(object)
	if p == nil {
		p = object{}
	}
	change(p)
	d["properties"], d["id"], d["name"] = p, at, at[strings.LastIndex(at, "/")+1:]
	k.body, _ = json.Marshal(d)
	s.keep(at, k)
}

// storages are the two digests that Cloud Storage keeps: MD5, and CRC32C behind it.
type storages struct {
	hash.Hash
	crc hash.Hash32
}

func newStorages() hash.Hash {
	return storages{md5.New(), crc32.New(crc32.MakeTable(crc32.Castagnoli))}
}

// Write implements hash.Hash.
func (s storages) Write(b []byte) (int, error) {
	s.crc.Write(b)
	return s.Hash.Write(b)
}

// Sum implements hash.Hash.
func (s storages) Sum(b []byte) []byte { return s.crc.Sum(s.Hash.Sum(b)) }

// google is Cloud Storage and Compute Engine.
func (s *sink) google(w http.ResponseWriter, r *http.Request) {
	at := r.URL.Path
	switch {
	case strings.HasPrefix(at, "/upload/"):
		w.Header().Set("Location", "http://"+r.Host+"/session")
	case at == "/session":
		if err := s.into(s.sum, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		span := strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes ")
		span, total, _ := strings.Cut(span, "/")
		if total == "*" {
			_, last, _ := strings.Cut(span, "-")
			w.Header().Set("Range", "bytes=0-"+last)
			w.WriteHeader(http.StatusPermanentRedirect)
			return
		}
		crc := s.sum.Sum(nil)[md5.Size:]
		answerJSON(w, http.StatusOK, object{"name": "file", "size": total, "crc32c": base64.StdEncoding.EncodeToString(crc)})
	case strings.HasSuffix(at, "/global/images") && r.Method == http.MethodPost:
		var d object
		_ = json.NewDecoder(r.Body).Decode(&d)
		d["status"] = "READY"
		b, _ := json.Marshal(d)
		s.keep(at+"/"+d["name"].(string), kept{body: b})
		answerJSON(w, http.StatusOK, object{"name": "op", "status": "DONE"})
	case strings.HasSuffix(at, "/global/images"):
		all := []json.RawMessage{}
		s.mu.Lock()
		for key, k := range s.kept {
			if strings.HasPrefix(key, at+"/") {
				all = append(all, k.body)
			}
		}
		s.mu.Unlock()
		answerJSON(w, http.StatusOK, object{"items": all})
	case r.Method == http.MethodPatch:
		var d object
		k, _ := s.get(at)
		_ = json.Unmarshal(k.body, &d)
		_ = json.NewDecoder(r.Body).Decode(&d)
		b, _ := json.Marshal(d)
		s.keep(at, kept{body: b})
		answerJSON(w, http.StatusOK, object{"name": "op", "status": "DONE"})
	case strings.HasPrefix(at, "/storage/v1/b/") && strings.HasSuffix(at, "/o"):
		answerJSON(w, http.StatusOK, object{"items": []object{}})
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	default:
		k, ok := s.get(at)
		if !ok {
			answerJSON(w, http.StatusNotFound, object{"error": object{"code": 404, "message": "it is not there", "errors": []object{{"reason": "notFound"}}}})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(k.body)
	}
}
