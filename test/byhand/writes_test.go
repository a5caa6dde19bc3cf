//go:build e2e

package byhand

import (
	"context"
	"net/http"
	"time"
)

const configMaps = "/api/v1/namespaces/default/configmaps"

// writer makes one ConfigMap after another.
type writer struct {
	cancel func()
	done   chan struct{}
	// Read after done is closed.
	acked []string
	gap   time.Duration
}

// write begins to make ConfigMaps whose names begin with prefix.
func (k *kubernetes) write(ctx context.Context, prefix string) *writer {
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{cancel: cancel, done: make(chan struct{})}
	quick := *k
	quick.Timeout = 5 * time.Second
	go func() {
		defer close(w.done)
		last := time.Now()
		for ctx.Err() == nil {
			var made struct{ Metadata struct{ Name string } }
			err := quick.call(ctx, http.MethodPost, configMaps, map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
				"metadata": map[string]any{"generateName": prefix + "-", "labels": map[string]string{"drill": "yes"}}}, &made)
			if err == nil {
				w.acked = append(w.acked, made.Metadata.Name)
				w.gap, last = max(w.gap, time.Since(last)), time.Now()
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
		w.gap = max(w.gap, time.Since(last))
	}()
	return w
}

// stop returns the names of what was acknowledged and the longest time without any.
func (w *writer) stop() ([]string, time.Duration) {
	w.cancel()
	<-w.done
	return w.acked, w.gap
}

// lost counts what was acknowledged and is not there.
func (k *kubernetes) lost(ctx context.Context, acked []string) (int, error) {
	var list struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	if err := k.call(ctx, http.MethodGet, configMaps+"?labelSelector=drill%3Dyes", nil, &list); err != nil {
		return 0, err
	}
	have := map[string]bool{}
	for _, i := range list.Items {
		have[i.Metadata.Name] = true
	}
	n := 0
	for _, name := range acked {
		if !have[name] {
			n++
		}
	}
	return n, nil
}
