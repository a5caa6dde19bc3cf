package agent

import (
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

// System implements nodeapi.Node.
func (n *node) System() nodeapi.System { return n.system }

// Heard implements nodeapi.Node: the journal has who asked for what.
func (n *node) Heard(c nodeapi.Call) {
	log := n.Log.With("procedure", c.Procedure, "who", c.Subject, "serial", c.Serial, "from", c.Source)
	if c.Via != "" {
		log = log.With("through", c.Via)
	}
	log.Info("node API called")
}
