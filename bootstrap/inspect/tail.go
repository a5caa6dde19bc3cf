package inspect

import "iter"

// tail keeps the last so many of what is added, and no more than so many bytes of it.
type tail[T any] struct {
	items       []T
	sizes       []int
	bytes       int
	lines, most int
}

// newTail keeps that many lines, all for 0, and that many bytes.
func newTail[T any](lines, bytes int) *tail[T] { return &tail[T]{lines: lines, most: bytes} }

func (t *tail[T]) add(item T, size int) {
	size += 64 // what holding it takes
	t.items, t.sizes = append(t.items, item), append(t.sizes, size)
	t.bytes += size
	for len(t.items) > 1 && (t.bytes > t.most || t.lines > 0 && len(t.items) > t.lines) {
		var none T
		t.bytes -= t.sizes[0]
		t.items[0] = none // append moves what is left to a new place now and then
		t.items, t.sizes = t.items[1:], t.sizes[1:]
	}
}

func (t *tail[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, item := range t.items {
			if !yield(item) {
				return
			}
		}
	}
}
