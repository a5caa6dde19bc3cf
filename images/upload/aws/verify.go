package aws

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/upload"
)

// Verify implements upload.Target: it compares the tags, and then reads the whole
// snapshot back, block by block.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	a, err := t.image(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	checks := []upload.Check{
		upload.CompareLabels(a.Tags.label, img),
		upload.CompareFile(a.Tags.label(upload.LabelFile), img),
		upload.Compare("state", a.State, "available"),
	}
	if a.Tags.label(upload.LabelDigest) != img.Audit()[upload.LabelDigest] {
		// It is another disk; its bytes would only say so again.
		return checks, nil
	}
	if len(a.Disks) != 1 || a.Disks[0].Snapshot == "" {
		return append(checks, upload.Check{Name: "snapshot", Result: upload.Bad, Detail: fmt.Sprintf("the image has %d disks", len(a.Disks))}), nil
	}
	id := a.Disks[0].Snapshot
	all, err := t.snapshots(ctx, filters("snapshot-id", id))
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return append(checks, upload.Check{Name: "snapshot", Result: upload.Bad, Detail: id + " is gone"}), nil
	}
	checks = append(checks, upload.Compare("size of the snapshot in GiB", strconv.FormatInt(all[0].SizeGiB, 10), strconv.FormatInt((img.RawSize+volumeUnit-1)/volumeUnit, 10)))
	blocks, err := t.verifyBlocks(ctx, id, img)
	return append(checks, blocks), err
}

// verifyBlocks reads what the snapshot has, and wants all else to be zero here.
func (t *Target) verifyBlocks(ctx context.Context, id string, img upload.Image) (upload.Check, error) {
	c := upload.Check{Name: "blocks, read back", Result: upload.Good}
	there, err := t.blocks(ctx, id)
	if err != nil {
		return c, err
	}
	var differ atomic.Int64
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(blocksAtOnce)
	for index, token := range there {
		group.Go(func() error {
			b, err := t.get(gctx, id, index, token)
			if err != nil {
				return err
			}
			same, err := sameBlock(img, index, b)
			if !same {
				differ.Add(1)
			}
			return err
		})
	}
	buffer := make([]byte, blockSize)
	for index, err := range dataBlocks(img) {
		if err != nil {
			return c, errors.Join(err, group.Wait())
		}
		if _, sent := there[index]; sent {
			continue
		}
		zero, err := readBlock(img, index, buffer)
		if err != nil {
			return c, errors.Join(err, group.Wait())
		}
		if !zero {
			differ.Add(1)
		}
	}
	if err := group.Wait(); err != nil {
		return c, err
	}
	c.Detail = fmt.Sprintf("%d blocks of %d bytes", len(there), blockSize)
	if n := differ.Load(); n > 0 {
		c.Result, c.Detail = upload.Bad, fmt.Sprintf("%d blocks of %d differ", n, len(there))
	}
	return c, nil
}
