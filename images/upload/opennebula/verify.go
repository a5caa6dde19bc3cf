package opennebula

import (
	"context"
	"encoding/base64"
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
	i, err := t.ourImage(ctx, "verifying", o.ID)
	if err != nil {
		return nil, err
	}
	checks := []upload.Check{
		upload.CompareLabels(i.label, img),
		upload.CompareFile(i.label(upload.LabelFile), img),
		upload.Compare("size in MB", strconv.FormatInt(i.SizeMB, 10), strconv.FormatInt((img.RawSize+1<<20-1)>>20, 10)),
	}
	if i.label(upload.LabelFile) == "sha256:"+img.SHA256 {
		sum, err := sha1Of(ctx, img, func(upload.Event) {})
		if err != nil {
			return nil, err
		}
		c := upload.Compare("SHA1 attribute", i.Template.SHA1, sum)
		if c.Result == upload.Good {
			c.Detail += ": what the front-end had to find at the import, or there would be no image; it proves nothing of what is stored now"
		}
		checks = append(checks, c)
	}
	if i.stage() == finished {
		checks = append(checks, upload.Check{Name: "state", Result: upload.Good, Detail: i.state()})
	} else {
		checks = append(checks, upload.Check{Name: "state", Result: upload.Bad, Detail: i.state() + " " + i.Template.Error})
	}
	return append(checks, upload.Check{Name: "stored bytes", Result: upload.Unprovable, Detail: "OpenNebula keeps no digest of what it stores, and gives no way to read it back"}), nil
}
