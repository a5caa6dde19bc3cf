package agent

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/imagectl/imagectl/bootstrap/audit"
)

// recordPath is this node's own audit log: what happened here that no server saw. When it has
// recordMax bytes it takes the place of recordPath.1, and the chain goes on in a new file.
const (
	recordPath = StateDir + "/audit.jsonl"
	recordMax  = 1 << 20
)

// Record implements nodeapi.Node.
func (n *node) Record(e audit.Entry) error {
	n.recording.Lock()
	defer n.recording.Unlock()
	e.Time = n.Now()
	before, err := n.Host.ReadFile(recordPath)
	if err != nil && !notExist(err) {
		return fmt.Errorf("adding to this node's log: %w", err)
	}
	tip := lastTip(before)
	line, _, err := audit.Seal(tip, e)
	if err != nil {
		return err
	}
	if len(before) >= recordMax || len(before) > 0 && tip.Seq == 0 {
		// Full, or not ours to go on with: it may be the only proof.
		if err := n.Host.WriteFile(recordPath+".1", before, 0o600); err != nil {
			return err
		}
		before = nil
	}
	if err := n.Host.WriteFile(recordPath, append(append(bytes.Clone(before), line...), '\n'), 0o600); err != nil {
		return err
	}
	n.Log.Warn("recorded", "action", e.Action, "who", e.Actor.Subject, "serial", e.Actor.Serial, "from", e.Actor.Source, "detail", e.Detail)
	return nil
}

// lastTip is where a log ends; the zero value for an empty one, and for what is none.
func lastTip(log []byte) audit.Tip {
	log = bytes.TrimSuffix(log, []byte("\n"))
	var tip audit.Tip
	if err := json.Unmarshal(log[bytes.LastIndexByte(log, '\n')+1:], &tip); err != nil {
		return audit.Tip{}
	}
	return tip
}
