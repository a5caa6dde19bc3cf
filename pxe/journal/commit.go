package journal

import "time"

const (
	// maxBatch is how many waiting answers share one sync.
	maxBatch = 512
	// crowd is how many have to share a sync for others to be worth waiting for.
	crowd = 4
	// gathering is how long others are waited for. A sync of a few lines was seen to take
	// 0.8 ms (ext4 on a virtual disk), and to cost a processor as much as ten answers; one
	// right after the other would do nothing but that. Longer does not help: with 4 ms, 64
	// clients that ask at once got 8,200 addresses a second, with 1 ms 15,000, and 512 as many.
	gathering = time.Millisecond
)

// Gather waits until others wait, too; see Commit.
func Gather() { time.Sleep(gathering) }

// Commit keeps the records of those who wait in a queue, of as many at a time as there
// are, and calls then for each batch with what became of it. While many ask it calls gather
// before each, which is Gather but for tests. It returns when the queue is closed and
// empty. keep may be a Journal's Append. A batch is valid until then returns.
func Commit[W, R any](queue <-chan W, records func(W) []R, gather func(), keep func([]R) error, then func(batch []W, err error)) {
	var batch []W
	var all []R
	for first := range queue {
		if len(batch) >= crowd && len(queue) < maxBatch {
			gather()
		}
		batch = append(batch[:0], first)
		all = append(all[:0], records(first)...)
	fill:
		for len(batch) < maxBatch {
			select {
			case w, ok := <-queue:
				if !ok {
					break fill
				}
				batch = append(batch, w)
				all = append(all, records(w)...)
			default:
				break fill
			}
		}
		then(batch, keep(all))
	}
}
