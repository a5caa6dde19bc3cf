package proxmox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"

	"github.com/imagectl/imagectl/images/iso"
)

// The NoCloud medium that the agent reads node.json from (bootstrap/platform).
const (
	mediumLabel = "CIDATA"
	mediumFile  = "USER-DATA"
)

// medium is the volume for the template's CD drive, if there is one. That of
// node.json is made where there is none yet; its name has its digest, so that it
// never changes, and it stays: clones of every version have it in their drive.
func (t *Target) medium(ctx context.Context) (string, error) {
	volume, name, image, err := t.drive()
	if err != nil || image == nil {
		return volume, err
	}
	var all []struct {
		ID string `json:"volid"`
	}
	if err := t.get(ctx, t.node("storage", t.Import, "content"), url.Values{"content": {"iso"}}, &all); err != nil {
		return "", fmt.Errorf("looking for %s: %w", volume, err)
	}
	for _, v := range all {
		if v.ID == volume {
			return volume, nil
		}
	}
	sum := sha256.Sum256(image)
	upid, err := t.post(ctx, "iso", name, bytes.NewReader(image), int64(len(image)), hex.EncodeToString(sum[:]))
	if err != nil {
		return "", err
	}
	return volume, t.await(ctx, "storing "+name+" on "+t.Import, upid)
}

// drive is the volume for the CD drive, and where it is node.json's, the file and the
// content that it has to have.
func (t *Target) drive() (volume, name string, image []byte, err error) {
	if len(t.NodeJSON) == 0 {
		return t.Medium, "", nil, nil
	}
	if image, err = iso.Data(mediumLabel, mediumFile, t.NodeJSON, time.Unix(0, 0).UTC()); err != nil {
		return "", "", nil, err
	}
	sum := sha256.Sum256(image)
	name = "imagectl-node-" + hex.EncodeToString(sum[:])[:16] + ".iso"
	return t.Import + ":iso/" + name, name, image, nil
}
