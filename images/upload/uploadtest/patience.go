package uploadtest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/stall"
)

func hangs(b *bench) {
	img := b.image(1)
	b.faults.Fail(2, Hangs, true)
	_, err := b.run(b.faults.Patience(b.Context()), img, true)
	if !errors.Is(err, upload.ErrTimeout) {
		b.Errorf("got %v, want ErrTimeout", err)
	}
	b.faults.Heal()
	b.must(img, true)
	b.clean(1)
}

// stalls has the platform stop while it answers the first call, and then in the
// middle of the largest body: of the file, where a request has it. What ends the wait
// is the limit of the whole upload, and then the watch on its connections.
func stalls(b *bench) {
	b.faults.Heal()
	b.must(b.image(1), true)
	largest := slices.Max(b.faults.Sent())
	made := 1
	for n, at := range []string{"the first answer", "the largest body"} {
		if n > 0 && largest == 0 {
			continue
		}
		for l, limit := range []string{"", stallLimit} {
			made++
			// Those with the larger bodies, also when they are packed, are for the bodies.
			img := b.image([][]uint64{{4, 5}, {3, 2}}[n][l])
			if n == 0 {
				b.faults.Fail(1, Stalls, true)
			} else {
				// Another image's file has another size, and may be packed on the way.
				b.faults.FailSending(min(largest, img.Size)/8+1, Stalls)
			}
			ctx, stop := b.faults.Patience(b.Context()), func() {}
			if limit != "" {
				ctx, stop = b.faults.Watched(b.Context(), stall.New(limit, time.Minute))
			}
			_, err := b.run(ctx, img, true)
			stop()
			if !errors.Is(err, upload.ErrTimeout) || !strings.Contains(err.Error(), limit) {
				b.Errorf("stopping at %s: got %v, want ErrTimeout and %q", at, err, limit)
			}
			b.faults.Heal()
			b.must(img, true)
			b.clean(made)
		}
	}
}

// stallLimit is what users call the limit that a watch has.
const stallLimit = "--stall"

func trickles(b *bench) {
	img := b.image(1)
	b.faults.Fail(1, Trickles, true)
	out := b.must(img, true)
	b.faults.Heal()
	b.clean(1)
	if all := b.list(); out.Unchanged || !all[0].Current || all[0].ID != out.Object.ID {
		b.Errorf("listed is %+v after %+v", all, out)
	}
}

// calledOff ends the process while the platform imports; the cleanup comes before
// the platform has noticed.
func calledOff(b *bench) {
	b.needs(CalledOff)
	b.Hold()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	img := b.image(1)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			if left, err := b.Leftovers(); err != nil || len(left) > 0 || ctx.Err() != nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	_, err := b.run(ctx, img, true)
	cancel()
	watch.Wait()
	if !errors.Is(err, context.Canceled) {
		b.Errorf("got %v, want that it was called off", err)
	}
	cleaned := make(chan error, 1)
	before := b.faults.Calls()
	go func() {
		_, err := upload.Cleanup(b.Context(), b.target, b.state, targetName)
		cleaned <- err
	}()
	if b.Waits {
		// Enough calls for it to have found out, and to have asked again.
		const asks = 10
		for b.faults.Calls() < before+asks && len(cleaned) == 0 {
			time.Sleep(time.Millisecond)
		}
		if len(cleaned) > 0 {
			b.Error("the cleanup did not wait for the import")
		}
		b.Release()
	}
	if err := <-cleaned; err != nil {
		b.Error(err)
	}
	b.clean(0)
	b.Release()
	b.clean(0)
	b.must(img, true)
	b.clean(1)
}
