package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// How long an etcd cluster is waited for: one attempt, after which another member is
// asked, and a whole call.
const (
	attemptTime      = 5 * time.Second
	externalPatience = 30 * time.Second
)

// dial makes a client; nothing is sent yet.
func (l Location) dial(c Config) (*clientv3.Client, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	config, err := l.tls()
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{
		Endpoints: l.Endpoints, TLS: config, DialTimeout: attemptTime,
		// A member that is back is found soon.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: attemptTime,
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}})},
		// A member that is gone without a word is noticed within seconds; etcd takes more
		// than one question in five seconds for an attack.
		DialKeepAliveTime: 6 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		Logger: zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(c.Log), zapcore.DPanicLevel)),
	})
}

// openExternal connects to the etcd cluster and makes this server one of those that
// use it.
func (s *Store) openExternal(ctx context.Context, l Location, c Config) (err error) {
	if s.identity, err = readIdentity(filepath.Join(s.dir, identityFile)); err != nil {
		return fmt.Errorf("%w; it is the same on every server of the cluster: imagectl server join brings it", err)
	}
	if s.client, err = l.dial(c); err != nil {
		return err
	}
	s.session = newSession(s.client, s.client.KV, c)
	kv := l.patient(s.client, s.session.keys+"marks/"+s.session.id+"/")
	if s.session.home, err = settle(ctx, kv, s.dir, c.Cluster); err != nil {
		return err
	}
	kv.home, kv.homeRevision = homeKey(c.Cluster), s.session.home
	s.client.KV = kv
	return nil
}

// patient makes a client's calls wait for an etcd that does not answer.
func (l Location) patient(client *clientv3.Client, marks string) *patientKV {
	kv := newPatientKV(client.KV, marks)
	kv.attempt, kv.patience = attemptTime, externalPatience
	kv.says = func(took time.Duration) string {
		return fmt.Sprintf("etcd gave no answer for %s: %s", took.Round(time.Second), Diagnose(context.Background(), client))
	}
	return kv
}

// Diagnose says in one sentence how many members of an etcd cluster answer.
func Diagnose(ctx context.Context, client *clientv3.Client) string {
	const patience = time.Second
	type answer struct {
		endpoint string
		leader   bool
		err      error
	}
	endpoints := client.Endpoints()
	answers := make([]answer, len(endpoints))
	var all sync.WaitGroup
	for i, e := range endpoints {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			r, err := client.Status(ctx, e)
			answers[i] = answer{endpoint: e, err: err, leader: err == nil && r.Leader != 0}
		})
	}
	all.Wait()
	answering, leader := 0, false
	var silent []string
	for _, a := range answers {
		if a.err == nil {
			answering++
			leader = leader || a.leader
			continue
		}
		silent = append(silent, a.endpoint+" ("+plain(a.err)+")")
	}
	text := fmt.Sprintf("%d of %d endpoints answer", answering, len(endpoints))
	if answering > 0 && !leader {
		text += ", and none of them knows a leader: a majority of the members must run"
	}
	if len(silent) > 0 {
		text += "; no answer from " + strings.Join(silent, ", ")
	}
	return text
}

// plain is the part of an error that people can use.
func plain(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "timed out"
	}
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		if text = s.Message(); s.Code() == codes.DeadlineExceeded {
			return "timed out"
		}
	}
	if _, cause, ok := strings.Cut(text, `desc = "`); ok {
		text, _, _ = strings.Cut(cause, `"`)
	}
	return text
}

func newID() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
