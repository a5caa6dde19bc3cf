package agent

import (
	"context"
	"sync"

	"github.com/imagectl/imagectl/bootstrap/lldp"
)

// neighbours are what was last heard, by network card. The zero value is ready; it is
// safe for concurrent use.
type neighbours struct {
	mu    sync.Mutex
	heard map[string]lldp.Neighbour
}

func (n *neighbours) of(card string) (lldp.Neighbour, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	found, ok := n.heard[card]
	return found, ok
}

func (n *neighbours) set(card string, found lldp.Neighbour) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heard == nil {
		n.heard = map[string]lldp.Neighbour{}
	}
	n.heard[card] = found
}

func (n *neighbours) forget(card string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.heard, card)
}

// hear keeps a card's neighbour until ctx ends. Who was not heard for a while is not
// there any more: cables are moved while machines run.
func (a *Agent) hear(ctx context.Context, card string) {
	const patience = 4 * lldp.Interval // a neighbour's own time to live, by default
	for ctx.Err() == nil {
		listening, cancel := context.WithTimeout(ctx, patience)
		found, err := a.listen(listening, card)
		late := listening.Err() != nil
		cancel()
		switch {
		case err == nil:
			a.neighbours.set(card, found)
		case ctx.Err() != nil:
			return
		case late:
			a.neighbours.forget(card)
			continue
		default:
			a.Log.Debug("the card's neighbour is not known", "card", card, "err", err)
			a.neighbours.forget(card)
		}
		_ = pause(ctx, lldp.Interval/2)
	}
}
