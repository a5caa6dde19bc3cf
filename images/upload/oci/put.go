package oci

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// puts is how often a manifest is written whose blobs the registry has lost again.
const puts = 3

// put writes a manifest whose blobs were sent. When two send one blob at once (the
// empty config is every image's), docker-registry can tell both that it has it and then
// have none; so the blobs are sent again when the manifest is refused for that.
func (t *Target) put(ctx context.Context, what string, ref name.Reference, m manifest, blobs ...blob) error {
	for n := 1; ; n++ {
		err := remote.Put(ref, m, t.with(ctx)...)
		if n == puts || !lacksBlob(err) {
			return failed(ctx, "writing "+what, err)
		}
		if err := t.sendBlobs(ctx, blobs...); err != nil {
			return err
		}
	}
}

// sendBlobs sends those that the registry does not have.
func (t *Target) sendBlobs(ctx context.Context, blobs ...blob) error {
	for _, b := range blobs {
		if err := remote.WriteLayer(t.repo, b, t.with(ctx)...); err != nil {
			return failed(ctx, fmt.Sprintf("sending %s to %s", b.digest, t.repo.Name()), err)
		}
	}
	return nil
}

func lacksBlob(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && slices.ContainsFunc(answer.Errors, func(d transport.Diagnostic) bool {
		return d.Code == transport.ManifestBlobUnknownErrorCode
	})
}
