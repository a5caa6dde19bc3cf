package serverapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// Keys for Secrets at rest are made here and kept with the other private keys, encrypted.
// Control planes fetch those that coordinator.Choices name. Old ones stay: a snapshot of etcd
// from before a rotation cannot be read without them.

// secretEncryption is a JSON list of sealedKey, oldest first.
const secretEncryption = "key/encryption"

type sealedKey struct {
	Name   string    `json:"name"`
	Secret []byte    `json:"secret"`
	Made   time.Time `json:"made"`
}

// newEncryptionKey has a random name too, so that a server that came out of a backup from
// before the key takes no other one for it.
func newEncryptionKey(random io.Reader, now time.Time) (sealedKey, error) {
	b := make([]byte, 4+32) // secretbox wants 32 bytes
	if _, err := io.ReadFull(random, b); err != nil {
		return sealedKey{}, fmt.Errorf("making a key for Secrets: %w", err)
	}
	return sealedKey{Name: "k-" + hex.EncodeToString(b[:4]), Secret: b[4:], Made: now.UTC()}, nil
}

// loadEncryption makes the first key at the first start.
func (s *Server) loadEncryption(ctx context.Context) error {
	b, err := s.cfg.Store.Secret(ctx, secretEncryption, func() ([]byte, error) {
		key, err := newEncryptionKey(s.cfg.Rand, s.cfg.Now())
		if err != nil {
			return nil, err
		}
		return json.Marshal([]sealedKey{key})
	}, s.recordSecret(secretEncryption))
	if err != nil {
		return err
	}
	keys, err := openKeys(b)
	if err != nil {
		return err
	}
	s.keepKeys(keys)
	return nil
}

func openKeys(b []byte) ([]sealedKey, error) {
	var keys []sealedKey
	if err := json.Unmarshal(b, &keys); err != nil {
		return nil, fmt.Errorf("reading secret %s: %w", secretEncryption, err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("reading secret %s: there is no key", secretEncryption)
	}
	return keys, nil
}

func readKeys(tx *store.Tx) ([]sealedKey, error) {
	b, ok, err := tx.Secret(secretEncryption)
	if err == nil && !ok {
		err = fmt.Errorf("reading secret %s: it is not there", secretEncryption)
	}
	if err != nil {
		return nil, err
	}
	return openKeys(b)
}

// keepKeys remembers when keys were made, without what is secret of them.
func (s *Server) keepKeys(keys []sealedKey) {
	known := make([]sealedKey, len(keys))
	for i, k := range keys {
		known[i] = sealedKey{Name: k.Name, Made: k.Made}
	}
	s.keys.Store(&known)
}

// keyMade is when a key was made; the zero time for one that this server does not know.
func (s *Server) keyMade(name string) time.Time {
	for _, k := range *s.keys.Load() {
		if k.Name == name {
			return k.Made
		}
	}
	return time.Time{}
}

// newestKey is the name of the key that was made last.
func (s *Server) newestKey() string {
	keys := *s.keys.Load()
	return keys[len(keys)-1].Name
}

// encryptionKeys are what a control plane gets.
func encryptionKeys(names []string, keys []sealedKey) ([]*api.EncryptionKey, error) {
	var out []*api.EncryptionKey
	for _, name := range names {
		if name == coordinator.PlainKey {
			out = append(out, &api.EncryptionKey{Name: name})
			continue
		}
		i := slices.IndexFunc(keys, func(k sealedKey) bool { return k.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("key %s for Secrets is not in the store", name)
		}
		out = append(out, &api.EncryptionKey{Name: name, Secret: keys[i].Secret})
	}
	return out, nil
}

// strangeKeys are keys in use that this server does not know: it came out of a backup that is
// older than they are. Each comes with the machine that uses it.
func (s *Server) strangeKeys() []string {
	var out []string
	for _, m := range s.cfg.Machines {
		r, ok := s.board.get(m.Name)
		if !ok || !m.ControlPlane {
			continue
		}
		for _, name := range r.last.GetKubernetes().GetEncryptionLoaded() {
			if name != coordinator.PlainKey && s.keyMade(name).IsZero() {
				out = append(out, fmt.Sprintf("%s (%s)", words(name), m.Name))
			}
		}
	}
	return out
}

// encryptionHolds is what a rotation waits for besides machines of cluster.yaml.
func (s *Server) encryptionHolds(c coordinator.Choices) []string {
	e := c.Encryption
	if e.Stage != coordinator.EncryptionAdding && e.Stage != coordinator.EncryptionWriting {
		return nil
	}
	var out []string
	for _, name := range c.APIServers {
		if _, listed := s.byName[name]; !listed && s.cfg.Store.State(name) != machine.Retired {
			out = append(out, fmt.Sprintf("%s is not in cluster.yaml any more, and its API server has the keys of before: imagectl machines retire %s", name, name))
		}
	}
	if s.cfg.Backups == nil || e.Stage != coordinator.EncryptionAdding {
		return out
	}
	made := s.keyMade(e.Next())
	if st := s.cfg.Backups.State(); st.Dir != "" && !st.Good.At.After(made) {
		out = append(out, fmt.Sprintf("no backup was made since %s, when the new key was: what is encrypted with it could not be read with an older one; imagectl server backup", stamp(made)))
	}
	return out
}

// chooseEncryption settles how Secrets are encrypted when the cluster is made, and advances a
// rotation.
func (s *Server) chooseEncryption(nodes []coordinator.Node, before, next coordinator.Choices) coordinator.Choices {
	if before.KubernetesFirst == "" && next.KubernetesFirst != "" {
		next.Policy = true
		next.Encryption = coordinator.Encryption{Keys: []string{s.newestKey()}}
		return next
	}
	next.Encryption = coordinator.NextEncryption(nodes, next, s.encryptionHolds(next))
	return next
}

// policy words what API servers are started with.
func (s *Server) policy(c coordinator.Choices) *api.APIServerPolicy {
	if !c.Policy {
		return nil
	}
	p := s.cfg.Kubernetes.PodSecurity.withDefaults()
	return &api.APIServerPolicy{Enforce: p.Enforce, Audit: p.Audit, Warn: p.Warn, Exempt: p.Exempt}
}

// ShowEncryption implements apiconnect.OperatorServiceHandler.
func (s operators) ShowEncryption(ctx context.Context, _ *connect.Request[api.ShowEncryptionRequest]) (*connect.Response[api.ShowEncryptionResponse], error) {
	v, err := s.encryptionView(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(&api.ShowEncryptionResponse{Encryption: v}), nil
}

func (s *Server) encryptionView(ctx context.Context) (*api.EncryptionView, error) {
	nodes, c, err := s.decide(ctx)
	if err != nil {
		return nil, err
	}
	e := c.Encryption
	v := &api.EncryptionView{Stage: string(e.Stage), Keys: e.Keys, Waits: coordinator.EncryptionWaits(nodes, c, s.encryptionHolds(c))}
	switch {
	case len(e.Keys) == 0:
		v.Stage = "off"
		return v, nil
	case e.Stage == coordinator.EncryptionSettled:
		v.Stage = "settled"
	}
	v.Former = s.formerKeys(e)
	if made := s.keyMade(e.Keys[0]); !made.IsZero() {
		v.MadeAt = timestamppb.New(made)
	}
	return v, nil
}

// RotateEncryption implements apiconnect.OperatorServiceHandler.
func (s operators) RotateEncryption(ctx context.Context, req *connect.Request[api.RotateEncryptionRequest]) (*connect.Response[api.RotateEncryptionResponse], error) {
	resp := &api.RotateEncryptionResponse{}
	var err error
	if resp.Changed, resp.Message, err = s.rotate(ctx, callerOf(ctx), req.Msg.GetAlsoRead()); err != nil {
		return nil, s.storing("", err)
	}
	if resp.Encryption, err = s.encryptionView(ctx); err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(resp), nil
}

// rotate begins a rotation, or says why there is none to begin.
func (s *Server) rotate(ctx context.Context, from caller, alsoRead []string) (changed bool, message string, err error) {
	if strange := s.strangeKeys(); len(strange) > 0 {
		return false, "", connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s", strangeText(strange)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var stored coordinator.Choices
	var keys []sealedKey
	err = s.coordinate(ctx, from.actor(), func(c *change) error {
		changed, stored = false, coordinator.Choices{}
		if err := c.standing(from); err != nil {
			return err
		}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		e := stored.Encryption
		switch {
		case stored.KubernetesFirst == "":
			return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("cluster %s has not been made yet: its Secrets will be encrypted from the first one on", s.cfg.Cluster))
		case e.Stage != coordinator.EncryptionSettled && len(alsoRead) > 0:
			return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("the key is being replaced by %s already: former keys can be read with when that is done, see imagectl server encryption-key show", e.Next()))
		case e.Stage != coordinator.EncryptionSettled:
			message = fmt.Sprintf("nothing to do: the key is being replaced by %s already", e.Next())
			return nil
		}
		var err error
		if keys, err = readKeys(c.tx); err != nil {
			return err
		}
		former, err := recalled(alsoRead, keys, e)
		if err != nil {
			return connect.NewError(connect.CodeInvalidArgument, err)
		}
		action := "encryption-key-rotated"
		if len(e.Keys) == 0 {
			// The first key has not been used yet.
			action = "encryption-turned-on"
		} else {
			next, err := newEncryptionKey(s.cfg.Rand, c.now)
			if err != nil {
				return err
			}
			keys = append(keys, next)
			sealed, err := json.Marshal(keys)
			if err != nil {
				return err
			}
			if err := c.tx.PutSecret(secretEncryption, sealed); err != nil {
				return err
			}
		}
		next := keys[len(keys)-1].Name
		stored.Encryption, stored.Policy = e.Rotate(next, former...), true
		changed = true
		message = fmt.Sprintf("Secrets will be encrypted with key %s, by and by: imagectl server encryption-key show", next)
		c.log(audit.Entry{Action: action, Before: strings.Join(e.Keys, ","), After: strings.Join(stored.Encryption.Keys, ","), Detail: "the key for Secrets at rest"})
		return c.tx.PutValue(valueChoices, stored)
	})
	if err == nil && changed {
		s.choices = stored
		s.keepKeys(keys)
		s.board.wake()
	}
	return changed, message, err
}

// recalled are the former keys that somebody names, each once and without the one in use.
func recalled(names []string, keys []sealedKey, e coordinator.Encryption) ([]string, error) {
	inUse := coordinator.PlainKey
	if len(e.Keys) > 0 {
		inUse = e.Keys[0]
	}
	var out []string
	for _, name := range names {
		known := name == coordinator.PlainKey || slices.ContainsFunc(keys, func(k sealedKey) bool { return k.Name == name })
		switch {
		case !known:
			return nil, fmt.Errorf("there is no key %q: imagectl server encryption-key show lists those that there were, and %s stands for none", name, coordinator.PlainKey)
		case name == inUse || slices.Contains(out, name):
			continue
		case len(e.Keys) == 0:
			// The first key begins to be used by this very rotation.
			return nil, fmt.Errorf("key %q was never used: Secrets are not encrypted", name)
		}
		out = append(out, name)
	}
	return out, nil
}

// formerKeys are those that no API server is given now, nor will be first.
func (s *Server) formerKeys(e coordinator.Encryption) []*api.FormerKey {
	var out []*api.FormerKey
	for _, k := range *s.keys.Load() {
		if !slices.Contains(e.Keys, k.Name) {
			out = append(out, &api.FormerKey{Name: k.Name, MadeAt: timestamppb.New(k.Made)})
		}
	}
	return out
}

func strangeText(strange []string) string {
	return fmt.Sprintf("Secrets are encrypted with a key that this server does not know, %s: it was restored from a backup that is older than the key; restore a newer one", strings.Join(strange, ", "))
}

// encryptionNotes are for status.
func (s *Server) encryptionNotes(nodes []coordinator.Node, c coordinator.Choices) []string {
	if strange := s.strangeKeys(); len(strange) > 0 {
		return []string{"alarm: " + strangeText(strange)}
	}
	e := c.Encryption
	switch {
	case c.KubernetesFirst == "":
		return nil
	case len(e.Keys) == 0:
		return []string{"warning: Secrets are not encrypted in etcd, and API servers keep no audit log: this cluster is from before that; imagectl server encryption-key rotate turns it on"}
	case e.Stage == coordinator.EncryptionSettled:
		note := fmt.Sprintf("Secrets are encrypted in etcd with key %s", e.Keys[0])
		if made := s.keyMade(e.Keys[0]); !made.IsZero() {
			note += " of " + made.Format(time.DateOnly)
		}
		return append([]string{note}, s.policyNotes(nodes, c)...)
	}
	doing := map[coordinator.EncryptionStage]string{
		coordinator.EncryptionAdding: "API servers learn to read with it", coordinator.EncryptionWriting: "API servers begin to write with it", coordinator.EncryptionRewriting: "what is there is written anew",
	}
	notes := []string{fmt.Sprintf("the key for Secrets in etcd is being replaced by %s: %s", e.Next(), doing[e.Stage])}
	for _, w := range coordinator.EncryptionWaits(nodes, c, s.encryptionHolds(c)) {
		notes = append(notes, "that waits: "+w)
	}
	return append(notes, s.policyNotes(nodes, c)...)
}

// policyNotes tell of API servers that run with another policy than they should.
func (s *Server) policyNotes(nodes []coordinator.Node, c coordinator.Choices) []string {
	var out []string
	for _, n := range nodes {
		switch {
		case n.Seen == nil || !n.Seen.Outdated:
		case c.Renewing == n.Name:
			out = append(out, fmt.Sprintf("%s starts its API server anew, with the policy of now, and a certificate for the addresses of now", n.Name))
		default:
			out = append(out, fmt.Sprintf("the API server of %s runs with an older policy, or its certificate with older addresses; it is started anew when it is its turn", n.Name))
		}
	}
	return out
}
