package opennebula

import (
	"context"
	"fmt"

	"github.com/imagectl/imagectl/images/upload"
)

// owner is whose something is.
type owner struct {
	UID   int    `xml:"UID"`
	User  string `xml:"UNAME"`
	Group string `xml:"GNAME"`
}

// caller is who we are at the front-end.
type caller struct {
	UID int `xml:"ID"`
	// group is Config.Group.
	group string
}

// owns tells whether something counts as ours: whoever may be read by all can say of
// itself what it likes, but not whose it is.
func (c caller) owns(o owner) bool {
	return o.UID == c.UID || c.group != "" && o.Group == c.group
}

// caller asks the front-end who we are, once.
func (t *Target) caller(ctx context.Context) (caller, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.me != nil {
		return *t.me, nil
	}
	// -1 is who asks (OpenNebula's documentation of its XML-RPC API).
	const whoAsks = -1
	me := caller{UID: noUser, group: t.conf.Group}
	if err := t.read(ctx, &me, "one.user.info", whoAsks); err != nil {
		return caller{}, err
	}
	if me.UID < 0 {
		return caller{}, fmt.Errorf("asking who we are: %w: the answer has no ID of a user", upload.ErrServer)
	}
	t.me = &me
	return me, nil
}

// noUser is no number of a user; oneadmin's is 0.
const noUser = -1
