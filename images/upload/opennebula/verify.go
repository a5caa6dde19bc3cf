package opennebula

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"

	"github.com/imagectl/imagectl/images/upload"
)

// contextVariable is what the agent reads from the CONTEXT medium
// (bootstrap/platform).
const contextVariable = "IMAGECTL_NODE"

// context64 is the template's CONTEXT, by which each machine gets a medium of its own: its
// cards' addresses (NETWORK), which oned fills in, its name in OpenNebula, and node.json, if
// there is one.
func context64(node []byte) [][2]string {
	return [][2]string{{"NETWORK", "YES"}, {"SET_HOSTNAME", "$NAME"}, {contextVariable, base64.StdEncoding.EncodeToString(node)}}
}

// Verify implements upload.Target.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	id, err := strconv.Atoi(o.ID)
	if err != nil {
		return nil, fmt.Errorf("verifying image %q: %w: it is no number", o.ID, upload.ErrNotFound)
	}
	i, err := t.image(ctx, id)
	if err != nil {
		return nil, err
	}
	same := func(name, got, want string) upload.Check {
		if got == want {
			return upload.Check{Name: name, Result: upload.Good, Detail: got}
		}
		return upload.Check{Name: name, Result: upload.Bad, Detail: fmt.Sprintf("is %q, want %q", got, want)}
	}
	sum, err := sha1Of(ctx, img, func(upload.Event) {})
	if err != nil {
		return nil, err
	}
	checks := []upload.Check{
		same("label name", i.Template.Family, img.Name),
		same("label version", i.Template.Version, img.Version),
		same("label digest", i.Template.Digest, img.Digest),
		same("size in MB", strconv.FormatInt(i.SizeMB, 10), strconv.FormatInt((img.RawSize+1<<20-1)>>20, 10)),
	}
	if i.Template.File == img.SHA256 {
		checks = append(checks, same("SHA1 of the file, as compared at import", i.Template.SHA1, sum))
	} else {
		checks = append(checks, upload.Check{Name: "SHA1 of the file, as compared at import", Result: upload.Unprovable, Detail: "the image was made of another file with the same disk"})
	}
	if i.stage() == finished {
		checks = append(checks, upload.Check{Name: "state", Result: upload.Good, Detail: i.state()})
	} else {
		checks = append(checks, upload.Check{Name: "state", Result: upload.Bad, Detail: i.state() + " " + i.Template.Error})
	}
	return append(checks, upload.Check{Name: "stored bytes", Result: upload.Unprovable, Detail: "OpenNebula keeps no digest of what it stores, and gives no way to read it back"}), nil
}
