package proxmoxtest

import (
	"errors"
	"fmt"
	"net/http"
)

// errStopped is what a worker dies of that somebody stops.
var errStopped = errors.New("received interrupt")

// fork runs work as a task; the caller has the lock, and work has not. The last line
// that work logs is its error.
func (s *Server) fork(kind, id string, work func(k *task) error) string {
	s.nextTask++
	k := &task{kind: kind, id: id, stopped: make(chan struct{})}
	k.upid = fmt.Sprintf("UPID:%s:%08X:%08X:67000000:%s:%s:%s:", Node, s.nextTask, s.nextTask, kind, id, Token)
	s.tasks[k.upid] = k
	s.work.Go(func() {
		err := work(k)
		s.mu.Lock()
		defer s.mu.Unlock()
		k.exit = "OK"
		if err != nil {
			k.exit = err.Error()
			k.log = append(k.log, "TASK ERROR: "+k.exit)
		}
	})
	return k.upid
}

func (s *Server) serveTasks(r *http.Request, p []string) (any, *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(p) == 0 {
		out := []map[string]any{}
		q := r.URL.Query()
		for _, k := range s.tasks {
			if k.exit == "" && (q.Get("typefilter") == "" || q.Get("typefilter") == k.kind) && (q.Get("vmid") == "" || q.Get("vmid") == k.id) {
				out = append(out, map[string]any{"upid": k.upid, "type": k.kind, "id": k.id, "node": Node})
			}
		}
		return out, nil
	}
	k := s.tasks[p[0]]
	if k == nil {
		return nil, no(http.StatusInternalServerError, "no such task")
	}
	switch {
	case r.Method == http.MethodDelete && len(p) == 1:
		if k.exit == "" {
			k.stop.Do(func() { close(k.stopped) })
		}
		return nil, nil
	case len(p) == 2 && p[1] == "status":
		if k.exit == "" {
			return map[string]any{"upid": k.upid, "status": "running"}, nil
		}
		return map[string]any{"upid": k.upid, "status": "stopped", "exitstatus": k.exit}, nil
	case len(p) == 2 && p[1] == "log":
		out := []map[string]any{}
		for n, line := range k.log {
			out = append(out, map[string]any{"n": n + 1, "t": line})
		}
		return out, nil
	}
	return nil, no(http.StatusNotImplemented, "Method not implemented")
}
