package serverapi

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
)

const (
	// maxNetboots is how many BMCs are worked on at once.
	maxNetboots = 32
	// netbootTime bounds one of them; a slow one in POST needs four minutes.
	netbootTime = 10 * time.Minute
	// storePause is waited after a change could not be stored.
	storePause = 10 * time.Second
	// ejectPause is waited after a BMC did not eject.
	ejectPause = time.Minute
)

// errNotWanted ends a start from the network whose arming is gone or taken.
var errNotWanted = errors.New("its arming was taken back or is in use meanwhile; nothing was switched")

// bmcOf tells how a machine's BMC is called; false where there is none.
func (s *Server) bmcOf(name string) (string, bool) {
	if s.cfg.BMC == nil {
		return "", false
	}
	return s.cfg.BMC.Names(name)
}

// canNetboot says whether a machine has a BMC, and whether what is asked for is
// under way: then asking again changes nothing.
func (s *Server) canNetboot(m store.Machine) (begun bool, err error) {
	if _, has := s.bmcOf(m.Name); has {
		return m.State == machine.Installing && m.Arming != nil && !m.Arming.NetbootAt.IsZero(), nil
	}
	return false, &refusedError{codeNoBMC, fmt.Sprintf("cluster.yaml names no BMC for it; arm it with imagectl machines arm %s and netboot it by hand", m.Name)}
}

// askNetboot notes in the arming that the BMC shall act. A second time for the same
// arming needs the word.
func (s *Server) askNetboot(c *change, m *store.Machine, again bool) {
	if !m.Arming.NetbootAt.IsZero() && (m.Arming.NetbootDone.IsZero() || !again) {
		return
	}
	m.Arming.NetbootAt, m.Arming.NetbootDone = c.now, time.Time{}
	name, _ := s.cfg.BMC.Names(m.Name)
	c.log(audit.Entry{Action: "netboot-asked", Machine: m.Name, Before: string(m.State), After: string(m.State), Detail: "of " + name})
}

// due says whether a machine's BMC has to act for this arming.
func due(m store.Machine) bool {
	return m.State == machine.Armed && m.Arming != nil && !m.Arming.NetbootAt.IsZero() && m.Arming.NetbootDone.IsZero()
}

// same says whether two armings are one, with the same request to the BMC.
func same(a, b store.Arming) bool { return a.ID == b.ID && a.NetbootAt.Equal(b.NetbootAt) }

// Netboot has BMCs start armed machines from the network where an operator asked
// for it, until ctx ends. What it was doing then it does anew after the next start:
// the request is in the machine's record.
func (s *Server) Netboot(ctx context.Context) error {
	if s.cfg.BMC == nil {
		<-ctx.Done()
		return nil
	}
	var workers errgroup.Group
	workers.SetLimit(maxNetboots)
	var mu sync.Mutex
	busy := map[string]bool{} // by machine
	ended := make(chan struct{}, 1)
	for ctx.Err() == nil {
		changed, term := s.cfg.Store.Changed(), s.cfg.Store.TermChanged()
		for _, m := range s.cfg.Store.Machines() {
			mu.Lock()
			skip := busy[m.Name] || !due(m) && !s.wasRead(m) || s.cfg.Store.Term() == ""
			busy[m.Name] = busy[m.Name] || !skip
			mu.Unlock()
			if skip {
				continue
			}
			workers.Go(func() error {
				s.netboot(ctx, m.Name)
				mu.Lock()
				delete(busy, m.Name)
				mu.Unlock()
				select {
				case ended <- struct{}{}: // somebody may have asked while it was busy
				default:
				}
				return nil
			})
		}
		select {
		case <-changed:
		case <-term:
		case <-ended:
		case <-ctx.Done():
		}
	}
	return workers.Wait()
}

// netboot has one BMC act for as long as its machine's record asks for it: an
// operator may have asked anew while the last one ended.
func (s *Server) netboot(ctx context.Context, name string) {
	for ctx.Err() == nil {
		m, ok := s.cfg.Store.Machine(name)
		if ok && s.wasRead(m) && s.cfg.Store.Term() != "" {
			s.eject(ctx, name)
			continue
		}
		if !ok || !due(m) || s.cfg.Store.Term() == "" {
			return
		}
		asked := *m.Arming
		still := func() error {
			if m, ok := s.cfg.Store.Machine(name); s.cfg.Store.Term() == "" || !ok || !due(m) || !same(*m.Arming, asked) {
				return errNotWanted
			}
			return nil
		}
		acting, cancel := context.WithTimeout(ctx, netbootTime)
		err := s.cfg.BMC.Boot(acting, name, still, func(step string) { s.board.tell(name, step) })
		cancel()
		s.board.tell(name, "")
		if ctx.Err() != nil {
			return // the record still asks
		}
		if err := s.netbootEnded(ctx, name, asked, err); err != nil {
			s.cfg.Log.Error("storing what a BMC did", "machine", name, "error", err.Error())
			select {
			case <-time.After(storePause):
			case <-ctx.Done():
			}
		}
	}
}

// netbootEnded stores what became of it. When the BMC did not do it, the arming is
// taken back, so that the machine's next start, whenever that is, wipes nothing.
func (s *Server) netbootEnded(ctx context.Context, name string, asked store.Arming, failed error) error {
	bmc, _ := s.cfg.BMC.Names(name)
	return s.coordinate(ctx, s.self(), func(c *change) error {
		m, err := c.machine(name)
		if err != nil {
			return err
		}
		current := due(m) && same(*m.Arming, asked)
		switch {
		case failed == nil:
			c.log(audit.Entry{Action: "netboot-done", Machine: name, Before: string(m.State), After: string(m.State), Detail: "by " + bmc})
			if current {
				m.Arming.NetbootDone = c.now
			}
			m.Media = m.Media || s.cfg.BMC.Media(name)
		case !current:
			c.log(audit.Entry{Action: "netboot-ended", Machine: name, Before: string(m.State), After: string(m.State), Detail: failed.Error()})
			return nil
		default:
			if err := c.move(&m, "netboot-failed", "disarmed again: its BMC did not start it: "+failed.Error(), machine.Disarm); err != nil {
				return err
			}
			m.Arming = nil
		}
		return c.tx.PutMachine(m)
	})
}

// wasRead says whether virtual media were put in for a start that is over: the installer
// runs in memory, or the machine was disarmed.
func (s *Server) wasRead(m store.Machine) bool {
	_, has := s.bmcOf(m.Name)
	return has && m.Media && m.State != machine.Armed
}

// eject has virtual media taken out, or else a machine whose order has the CD first
// would start the installer for ever.
func (s *Server) eject(ctx context.Context, name string) {
	acting, cancel := context.WithTimeout(ctx, netbootTime)
	err := s.cfg.BMC.Eject(acting, name)
	cancel()
	if err == nil {
		err = s.coordinate(ctx, s.self(), func(c *change) error {
			m, err := c.machine(name)
			if err != nil || !m.Media {
				return err
			}
			m.Media = false
			bmc, _ := s.cfg.BMC.Names(name)
			c.log(audit.Entry{Action: "media-ejected", Machine: name, Before: string(m.State), After: string(m.State), Detail: "by " + bmc})
			return c.tx.PutMachine(m)
		})
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	s.cfg.Log.Error("taking the installer out of a BMC's virtual CD; trying again", "machine", name, "error", err.Error())
	select {
	case <-time.After(s.ejectPause):
	case <-ctx.Done():
	}
}

// netbootReason is what a machine waits for whose BMC acts or has acted.
func (s *Server) netbootReason(r store.Machine) string {
	if r.State != machine.Armed || r.Arming == nil || r.Arming.NetbootAt.IsZero() || s.cfg.BMC == nil || len(r.Pending) > 0 || r.Key != nil && r.Key.ApprovedAt.After(r.Arming.At) {
		return ""
	}
	bmc, _ := s.cfg.BMC.Names(r.Name)
	if !r.Arming.NetbootDone.IsZero() {
		return fmt.Sprintf("%s started it from the network at %s", bmc, r.Arming.NetbootDone.UTC().Format("15:04:05 MST"))
	}
	if step := s.board.told(r.Name); step != "" {
		return bmc + ": " + step
	}
	return "waits for " + bmc
}
