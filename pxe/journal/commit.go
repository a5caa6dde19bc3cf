package journal

// maxBatch is how many waiting answers share one sync.
const maxBatch = 512

// Commit keeps the records of those who wait in a queue, of as many at a time as there
// are, and calls then for each batch with what became of it. It returns when the queue is
// closed and empty. keep may be a Journal's Append. A batch is valid until then returns.
func Commit[W, R any](queue <-chan W, records func(W) []R, keep func([]R) error, then func(batch []W, err error)) {
	var batch []W
	var all []R
	for first := range queue {
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
