package aws

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

const (
	// blockSize is the only one that EBS has, in bytes.
	blockSize = 512 << 10
	// volumeUnit is what the sizes of volumes are counted in, in bytes.
	volumeUnit = 1 << 30
	// idleMinutes is how long EBS lets a snapshot stay open without a block coming,
	// before it gives it up.
	idleMinutes = 60
	// blocksAtOnce fill a line whose answer takes longer than its bytes; with them 5 MiB
	// are in memory.
	blocksAtOnce = 10
)

// start begins a snapshot; the same token begins it once.
func (t *Target) start(ctx context.Context, img upload.Image, token string) (string, error) {
	type tag struct{ Key, Value string }
	all := tagsOf(img)
	all[tagOf(tagUpload)] = token
	ask := struct {
		VolumeSize  int64
		Description string
		ClientToken string
		Timeout     int
		Tags        []tag
	}{VolumeSize: (img.RawSize + volumeUnit - 1) / volumeUnit, Description: "imagectl " + imageName(img), ClientToken: token, Timeout: idleMinutes}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		ask.Tags = append(ask.Tags, tag{k, all[k]})
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return "", fmt.Errorf("beginning a snapshot: %w", err)
	}
	var made struct {
		SnapshotID string `json:"SnapshotId"`
		BlockSize  int
	}
	if err := t.direct(ctx, http.MethodPost, "/snapshots", http.Header{"Content-Type": {"application/json"}}, body, &made); err != nil {
		return "", fmt.Errorf("beginning a snapshot: %w", err)
	}
	if made.SnapshotID == "" || made.BlockSize != blockSize {
		return "", fmt.Errorf("beginning a snapshot: %w: EBS answered with snapshot %q and blocks of %d bytes, want %d", upload.ErrServer, made.SnapshotID, made.BlockSize, blockSize)
	}
	return made.SnapshotID, nil
}

// direct calls the EBS direct API. All its calls may be repeated.
func (t *Target) direct(ctx context.Context, method, path string, h http.Header, body []byte, into any) error {
	a, err := t.call(ctx, ebs, path, rest.Request{Method: method, Header: h, Body: body, Repeatable: true})
	if err != nil || into == nil {
		return err
	}
	if err := json.Unmarshal(a.Body, into); err != nil {
		return fmt.Errorf("%w: its answer cannot be read: %w", upload.ErrServer, err)
	}
	return nil
}

// put writes a block.
func (t *Target) put(ctx context.Context, snapshot string, index int64, block []byte, sum [sha256.Size]byte) error {
	h := http.Header{
		"Content-Type": {"application/octet-stream"}, "X-Amz-Data-Length": {strconv.Itoa(len(block))},
		"X-Amz-Checksum": {base64.StdEncoding.EncodeToString(sum[:])}, "X-Amz-Checksum-Algorithm": {"SHA256"},
		contentSum: {hex.EncodeToString(sum[:])},
	}
	if err := t.direct(ctx, http.MethodPut, fmt.Sprintf("/snapshots/%s/blocks/%d", snapshot, index), h, block, nil); err != nil {
		return fmt.Errorf("sending block %d of %s: %w", index, snapshot, err)
	}
	return nil
}

// complete seals a snapshot: EBS compares the number of blocks and the digest of
// their digests, in order, with what it has.
func (t *Target) complete(ctx context.Context, snapshot string, sums map[int64][sha256.Size]byte) error {
	whole := sha256.New()
	for _, i := range slices.Sorted(maps.Keys(sums)) {
		sum := sums[i]
		whole.Write(sum[:])
	}
	h := http.Header{
		"X-Amz-Changedblockscount": {strconv.Itoa(len(sums))}, "X-Amz-Checksum": {base64.StdEncoding.EncodeToString(whole.Sum(nil))},
		"X-Amz-Checksum-Algorithm": {"SHA256"}, "X-Amz-Checksum-Aggregation-Method": {"LINEAR"},
	}
	if err := t.direct(ctx, http.MethodPost, "/snapshots/completion/"+snapshot, h, nil, nil); err != nil {
		return fmt.Errorf("completing %s: %w", snapshot, err)
	}
	return nil
}

// blocks are the indices of a snapshot's blocks with the tokens to read them by.
func (t *Target) blocks(ctx context.Context, snapshot string) (map[int64]string, error) {
	all := map[int64]string{}
	q := url.Values{"maxResults": {"10000"}}
	for {
		var page struct {
			Blocks []struct {
				BlockIndex int64
				BlockToken string
			}
			NextToken string
		}
		if err := t.direct(ctx, http.MethodGet, "/snapshots/"+snapshot+"/blocks?"+q.Encode(), nil, nil, &page); err != nil {
			return nil, fmt.Errorf("listing the blocks of %s: %w", snapshot, err)
		}
		for _, b := range page.Blocks {
			all[b.BlockIndex] = b.BlockToken
		}
		if page.NextToken == "" {
			return all, nil
		}
		q.Set("pageToken", page.NextToken)
	}
}

// get reads a block.
func (t *Target) get(ctx context.Context, snapshot string, index int64, token string) ([]byte, error) {
	path := fmt.Sprintf("/snapshots/%s/blocks/%d?%s", snapshot, index, url.Values{"blockToken": {token}}.Encode())
	a, err := t.call(ctx, ebs, path, rest.Request{Method: http.MethodGet, Repeatable: true})
	if err != nil {
		return nil, fmt.Errorf("reading block %d of %s: %w", index, snapshot, err)
	}
	return a.Body, nil
}

// dataBlocks are the indices of the blocks of a file that hold data, in order. Some
// may be zero all the same.
func dataBlocks(img upload.Image) iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		next := int64(0)
		for off := int64(0); ; {
			r, ok, err := sparse.Next(img.File, off, img.Size)
			if err != nil {
				yield(0, err)
				return
			}
			if !ok {
				return
			}
			next = max(next, r.Offset/blockSize)
			for ; next*blockSize < r.Offset+r.Length; next++ {
				if !yield(next, nil) {
					return
				}
			}
			off = r.Offset + r.Length
		}
	}
}

// readBlock reads a block of the file into b, which has a block's size, the last one
// filled up with zeros. zero says that it has nothing else.
func readBlock(img upload.Image, index int64, b []byte) (zero bool, err error) {
	off := index * blockSize
	n := min(blockSize, img.Size-off)
	if _, err := io.ReadFull(io.NewSectionReader(img.File, off, n), b[:n]); err != nil {
		return false, fmt.Errorf("reading %s at %d: %w", img.File.Name(), off, err)
	}
	clear(b[n:])
	return sparse.IsZero(b), nil
}

// sameBlock tells whether a block there is the file's.
func sameBlock(img upload.Image, index int64, there []byte) (bool, error) {
	if index*blockSize >= img.Size {
		return sparse.IsZero(there), nil
	}
	here := make([]byte, blockSize)
	zero, err := readBlock(img, index, here)
	if zero {
		return sparse.IsZero(there), err
	}
	return bytes.Equal(here, there), err
}
