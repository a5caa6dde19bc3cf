package aws

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/upload"
)

// leftSnapshot is the kind of what a broken upload leaves; its note is a progress.
const leftSnapshot = "snapshot"

// progress of a snapshot, as the journal keeps it.
type progress struct {
	// Token began the snapshot, and is its tag.
	Token string `json:"token"`
	// Blocks with a lower index are there.
	Blocks int64 `json:"blocks,omitempty"`
	// Sealing: EBS may have been told that it is complete.
	Sealing bool `json:"sealing,omitempty"`
}

// Preflight implements upload.Target.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	found, err := t.find(ctx, img)
	if err != nil {
		return upload.Plan{}, err
	}
	var p upload.Plan
	if found != nil {
		switch {
		case found.State == "available":
			o, err := t.object(ctx, *found)
			p.Found = &o
			return p, err
		case found.broken():
			p.Steps = append(p.Steps, fmt.Sprintf("deregister %s, which an earlier upload left in state %s: %s", found.ID, found.State, found.Reason))
		default:
			p.Steps = append(p.Steps, fmt.Sprintf("wait for %s, which is %s", found.ID, found.State))
			return p, nil
		}
	}
	if p.Bytes, err = sparse.DataBytes(img.File, img.Size); err != nil {
		return p, err
	}
	p.Steps = append(p.Steps,
		fmt.Sprintf("send the blocks that are not zero to a new snapshot in %s", t.conf.Region),
		fmt.Sprintf("register the snapshot as image %s", imageName(img)))
	return p, nil
}

// find returns the AMI with a disk's content; nil when there is none.
func (t *Target) find(ctx context.Context, img upload.Image) (*ami, error) {
	all, err := t.images(ctx, filters("tag:"+tagOf(upload.LabelOurs), "1", "tag:"+tagOf(upload.LabelName), img.Name, "tag:"+tagOf(upload.LabelDigest), img.Audit()[upload.LabelDigest]))
	if err != nil {
		return nil, err
	}
	if len(all) > 0 {
		return &all[0], nil
	}
	if all, err = t.images(ctx, filters("name", imageName(img))); err != nil || len(all) == 0 {
		return nil, err
	}
	return nil, fmt.Errorf("looking for %s: %w: %s has this name, and is not this disk; remove it, or give it another", imageName(img), upload.ErrTaken, all[0].ID)
}

// Upload implements upload.Target.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	// Each round ends or removes one thing that was in the way.
	const rounds = 5
	for range rounds {
		found, err := t.find(ctx, img)
		if err != nil {
			return upload.Object{}, err
		}
		if found == nil {
			made, err := t.create(ctx, img, j, ev)
			if errors.Is(err, upload.ErrTaken) {
				// Another upload of the same image may have been faster. If not, find says it.
				continue
			}
			if err != nil {
				return upload.Object{}, err
			}
			found = &made
		}
		if !found.broken() && found.State != "available" {
			ev(upload.Event{Phase: "waiting for the image", Note: fmt.Sprintf("%s is %s", found.ID, found.State)})
			if *found, err = t.settled(ctx, found.ID); err != nil {
				return upload.Object{}, err
			}
		}
		if !found.broken() {
			return t.object(ctx, *found)
		}
		ev(upload.Event{Phase: "removing what an earlier upload left", Note: fmt.Sprintf("%s is %s and is deregistered: %s", found.ID, found.State, found.Reason)})
		if err := t.deregister(ctx, *found); err != nil {
			return upload.Object{}, err
		}
	}
	return upload.Object{}, fmt.Errorf("%w: image %s was broken %d times over", upload.ErrServer, imageName(img), rounds)
}

// create makes the snapshot and the AMI.
func (t *Target) create(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (ami, error) {
	left, err := t.snapshot(ctx, img, j, ev)
	if err != nil {
		return ami{}, err
	}
	ev(upload.Event{Phase: "registering"})
	id, err := t.register(ctx, img, left.ID)
	if err != nil {
		return ami{}, fmt.Errorf("registering %s: %w", imageName(img), err)
	}
	made, err := t.settled(ctx, id)
	if err != nil {
		return ami{}, err
	}
	return made, j.Forget(left)
}

// settled waits until an AMI is no longer pending.
func (t *Target) settled(ctx context.Context, id string) (ami, error) {
	for looks := 1; ; looks++ {
		a, err := t.image(ctx, id)
		switch {
		case errors.Is(err, upload.ErrNotFound) && looks < unseen:
		case err != nil || a.broken() || a.State == "available":
			return a, err
		}
		if err := t.conf.Wait(ctx, poll); err != nil {
			return ami{}, fmt.Errorf("waiting for image %s: %w", id, upload.CallError(ctx, err))
		}
	}
}

// snapshot goes on with the one that the journal has, or makes one; when it returns
// the snapshot is completed.
func (t *Target) snapshot(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Leftover, error) {
	left, p, err := t.begun(ctx, j, ev)
	if err != nil {
		return left, err
	}
	if p.Token == "" {
		p.Token = rand.Text()
		left = upload.Leftover{Kind: leftSnapshot, Name: imageName(img)}
	}
	if left.ID == "" {
		if err := note(j, left, p); err != nil {
			return left, err
		}
		if left.ID, err = t.start(ctx, img, p.Token); err != nil {
			return left, err
		}
		if err := note(j, left, p); err != nil {
			return left, err
		}
	}
	sums, err := t.send(ctx, img, left, &p, j, ev)
	if err != nil {
		return left, err
	}
	retried := p.Sealing
	p.Sealing = true
	if err := note(j, left, p); err != nil {
		return left, err
	}
	err = t.complete(ctx, left.ID, sums)
	if err != nil && !(retried && errors.Is(err, errNoSense)) {
		return left, err
	}
	// When it makes no sense the second time, the first has done it.
	return left, t.completed(ctx, left.ID, ev)
}

func note(j upload.Journal, l upload.Leftover, p progress) error {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("writing down the snapshot: %w", err)
	}
	l.Note = string(b)
	return j.Write(l)
}

// begun is the snapshot of an earlier run that can be gone on with; one without
// token when there is none. What is useless is removed.
func (t *Target) begun(ctx context.Context, j upload.Journal, ev upload.Events) (left upload.Leftover, p progress, err error) {
	all := j.Left()
	i := slices.IndexFunc(all, func(l upload.Leftover) bool { return l.Kind == leftSnapshot })
	if i < 0 {
		return left, p, nil
	}
	left = all[i]
	s, err := t.marked(ctx, left)
	if err != nil {
		return left, p, err
	}
	known := json.Unmarshal([]byte(left.Note), &p) == nil && p.Token != ""
	if s == nil && left.ID == "" && known {
		// It may be there and not in the lists yet: the same token does not make a second.
		return left, p, nil
	}
	if s != nil && s.Status != stateError && known {
		left.ID = s.ID
		ev(upload.Event{Phase: "sending", Note: fmt.Sprintf("an earlier upload began snapshot %s: going on from there", s.ID)})
		return left, p, nil
	}
	if s != nil {
		ev(upload.Event{Phase: "sending", Note: fmt.Sprintf("snapshot %s of an earlier upload was given up by EBS (%s) and is deleted", s.ID, s.Message)})
		if err := t.deleteSnapshot(ctx, s.ID); err != nil {
			return left, p, err
		}
	}
	return upload.Leftover{}, progress{}, j.Forget(left)
}

// marked is the snapshot that a leftover speaks of, by the tag that it was begun
// with; nil when there is none.
func (t *Target) marked(ctx context.Context, left upload.Leftover) (*snap, error) {
	var p progress
	if json.Unmarshal([]byte(left.Note), &p) != nil || p.Token == "" {
		return nil, nil
	}
	all, err := t.snapshots(ctx, filters("tag:"+tagOf(tagUpload), p.Token))
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[0], nil
}

// send puts the blocks that are not there yet, many at once, and returns the
// digests of all of them.
func (t *Target) send(ctx context.Context, img upload.Image, left upload.Leftover, p *progress, j upload.Journal, ev upload.Events) (map[int64][sha256.Size]byte, error) {
	from := p.Blocks
	w := &watermark{blocks: map[int64]bool{}, sums: map[int64][sha256.Size]byte{}, progress: p, save: func() error { return note(j, left, *p) }}
	// What was sent well is used again: left to the garbage collector it would double
	// the memory. Of what was not the transport may be reading still.
	buffers := sync.Pool{New: func() any { return new([blockSize]byte) }}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(blocksAtOnce)
	for index, err := range dataBlocks(img) {
		if err != nil {
			return nil, errors.Join(err, group.Wait())
		}
		if gctx.Err() != nil {
			break
		}
		w.begin(index)
		group.Go(func() error {
			block := buffers.Get().(*[blockSize]byte) //nolint:forcetypeassert // It has nothing else.
			zero, err := readBlock(img, index, block[:])
			if err != nil {
				return err
			}
			var sum *[sha256.Size]byte
			if !zero {
				s := sha256.Sum256(block[:])
				sum = &s
				if index >= from {
					if err := t.put(gctx, left.ID, index, block[:], s); err != nil {
						return err
					}
				}
			}
			buffers.Put(block)
			ev(upload.Event{Phase: "sending", Done: min((index+1)*blockSize, img.Size), Total: img.Size})
			return w.end(index, sum)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, errors.Join(err, w.save())
	}
	p.Blocks = max(p.Blocks, (img.Size+blockSize-1)/blockSize)
	return w.sums, ctx.Err()
}

// watermark knows below which block all are there, and writes it down now and then.
type watermark struct {
	mu       sync.Mutex
	blocks   map[int64]bool // begun; true when they are there
	order    []int64        // those in blocks, by index
	sums     map[int64][sha256.Size]byte
	progress *progress
	save     func() error
	unsaved  int
}

// saveEvery is how many blocks are sent between two lines of the journal: 64 MiB.
const saveEvery = 128

func (w *watermark) begin(index int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blocks[index] = false
	w.order = append(w.order, index)
}

func (w *watermark) end(index int64, sum *[sha256.Size]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if sum != nil {
		w.sums[index] = *sum
	}
	w.blocks[index] = true
	for len(w.order) > 0 && w.blocks[w.order[0]] {
		w.progress.Blocks = max(w.progress.Blocks, w.order[0]+1)
		delete(w.blocks, w.order[0])
		w.order = w.order[1:]
		w.unsaved++
	}
	if w.unsaved < saveEvery {
		return nil
	}
	w.unsaved = 0
	return w.save()
}

// completed waits until EBS has put a snapshot together.
func (t *Target) completed(ctx context.Context, id string, ev upload.Events) error {
	for looks := 1; ; looks++ {
		ev(upload.Event{Phase: "waiting for the snapshot"})
		all, err := t.snapshots(ctx, filters("snapshot-id", id))
		if err != nil {
			return err
		}
		switch {
		case len(all) == 0 && looks >= unseen:
			return fmt.Errorf("waiting for %s: %w: it is gone", id, upload.ErrServer)
		case len(all) == 0:
		case all[0].Status == stateCompleted:
			return nil
		case all[0].Status == stateError:
			return fmt.Errorf("waiting for %s: %w: EBS says: %s", id, upload.ErrServer, all[0].Message)
		}
		if err := t.conf.Wait(ctx, poll); err != nil {
			return fmt.Errorf("waiting for snapshot %s: %w", id, upload.CallError(ctx, err))
		}
	}
}

// Clean implements upload.Target: it removes the snapshot that a broken upload
// made, unless an AMI was registered of it.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	s, err := t.marked(ctx, left)
	if err != nil || s == nil {
		return err
	}
	used, err := t.images(ctx, filters("block-device-mapping.snapshot-id", s.ID))
	if err != nil {
		return err
	}
	for _, a := range used {
		if !a.broken() {
			return nil
		}
		if err := t.deregister(ctx, a); err != nil {
			return err
		}
	}
	if err := t.deleteSnapshot(ctx, s.ID); err != nil && !errors.Is(err, upload.ErrInUse) {
		return err
	}
	return nil
}
