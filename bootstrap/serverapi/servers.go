package serverapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// Several servers of one cluster share the store. Each of them boots and enrols machines.
// One coordinates: it alone answers nodes and operators, since what machines report is in
// the memory of whom they report to. When it is gone another one takes its place, as it
// would after a restart.

// Paths that say how a server is, to anybody.
const (
	// ReadyPath answers 200 while the server can store changes, else 503 with the reason.
	ReadyPath = "/readyz"
	// CoordinatesPath answers 200 where nodes and operators are answered, else 503 with
	// the reason.
	CoordinatesPath = "/coordinates"
)

// leads refuses what only the coordinating server answers.
func (s *Server) leads() error {
	if s.cfg.Store.Term() != "" {
		return nil
	}
	why := "no server coordinates now; ask again in a few seconds"
	if err := s.cfg.Store.Healthy(); err != nil {
		why = err.Error()
	} else if other := s.cfg.Store.Leader(); other != "" {
		why = other + " coordinates now; ask there"
	}
	return connect.NewError(connect.CodeUnavailable, errors.New(why))
}

// coordinate is change for what only the coordinating server may do. It fails with
// store.ErrNotLeading when another one coordinates by the time of the commit, whatever
// this one believes.
func (s *Server) coordinate(ctx context.Context, actor audit.Actor, f func(c *change) error) error {
	return s.change(ctx, actor, func(c *change) error {
		if err := c.tx.Lead(); err != nil {
			return err
		}
		return f(c)
	})
}

// takeOver reads what another server may have chosen, when this one has begun to
// coordinate; mu is held. Nobody's silence counts yet, as after a start.
func (s *Server) takeOver(ctx context.Context) error {
	term := s.cfg.Store.Term()
	if term == s.term || term == "" {
		return nil
	}
	if err := s.cfg.Store.Refresh(ctx); err != nil {
		return err
	}
	if err := s.loadChoices(ctx); err != nil {
		return err
	}
	if err := s.loadEtcdCA(ctx); err != nil {
		return err
	}
	s.term, s.led, s.view = term, s.cfg.Now(), view{}
	return nil
}

// loadChoices reads the choices made so far; mu is held.
func (s *Server) loadChoices(ctx context.Context) error {
	return s.cfg.Store.Change(ctx, func(tx *store.Tx) error {
		s.choices = coordinator.Choices{}
		_, err := tx.Value(valueChoices, &s.choices)
		return err
	})
}

// Follow keeps this server current with what others of the same cluster change, and says
// in the log who coordinates, until ctx ends.
func (s *Server) Follow(ctx context.Context) error {
	if !s.cfg.Store.Shared() {
		<-ctx.Done()
		return nil
	}
	var all errgroup.Group
	all.Go(func() error {
		s.cfg.Store.FollowValue(ctx, valueRevocations, func() { s.reloadRevoked(ctx) })
		return nil
	})
	all.Go(func() error {
		s.cfg.Store.FollowValue(ctx, valueRollover, func() {
			if err := s.loadTrust(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Error("reading which CA signs; restart imagectl serve", "error", err.Error())
			}
		})
		return nil
	})
	all.Go(func() error {
		s.cfg.Store.FollowValue(ctx, valueEtcdCAs, func() { s.reloadEtcdCA(ctx) })
		return nil
	})
	all.Go(func() error {
		s.cfg.Store.FollowValue(ctx, valueChoices, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if err := s.loadChoices(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Error("reading the cluster's choices", "error", err.Error())
			}
			s.view = view{}
		})
		return nil
	})
	all.Go(func() error { s.tell(ctx); return nil })
	return all.Wait()
}

// tell says in the log what becomes of the servers.
func (s *Server) tell(ctx context.Context) {
	st := s.cfg.Store
	leader, well := "", true
	for ctx.Err() == nil {
		changed := st.TermChanged()
		if now := st.Leader(); now != leader && now != "" {
			leader = now
			s.cfg.Log.Info("nodes and operators are answered by", "server", leader, "this", st.Term() != "")
		}
		switch err := st.Healthy(); {
		case err == nil && !well:
			s.cfg.Log.Info("etcd answers again")
			well = true
		case err != nil && well:
			s.cfg.Log.Error("no change can be stored: machines that have an address go on booting, nobody gets a new one", "reason", err.Error())
			well = false
		}
		s.board.wake() // who waits for a directive is sent to the other server
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// pages are all that is fetched with GET.
func (s *Server) pages() []Page {
	page := func(path string, sick func() error) Page {
		return Page{Path: path, Open: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "no-store")
			if err := sick(); err != nil {
				var ce *connect.Error
				text := err.Error()
				if errors.As(err, &ce) {
					text = ce.Message()
				}
				http.Error(w, text, http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})}
	}
	return append(slices.Clone(s.cfg.Pages), page(ReadyPath, s.cfg.Store.Healthy), page(CoordinatesPath, s.leads))
}
