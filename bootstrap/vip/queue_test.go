package vip_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/imagectl/imagectl/bootstrap/store/storetest"
	"github.com/imagectl/imagectl/bootstrap/vip"
)

// queues make places in the queue of a real etcd.
func queues(t *testing.T, e *storetest.Etcd) func(system string) *vip.Queue {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(e.Certificate, e.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(e.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return func(system string) *vip.Queue {
		q := &vip.Queue{System: system, Open: func(context.Context) (*clientv3.Client, error) {
			return clientv3.New(clientv3.Config{Endpoints: e.Endpoints, Logger: zap.NewNop(), TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair}}})
		}}
		t.Cleanup(func() { _ = q.Close() })
		return q
	}
}

func TestTheQueueInEtcd(t *testing.T) {
	e := storetest.Start(t)
	places := queues(t, e)
	// A machine that stands still for longer than TTL loses no lease meanwhile.
	const ttl = time.Minute
	open := func(system string) *vip.Queue { return places(system).Lasts(ttl) }
	ctx := t.Context()
	first, second := open("boot-1"), open("boot-2")
	want := func(q *vip.Queue, in, isFirst bool, others int) {
		t.Helper()
		before := time.Now()
		s, err := q.Ask(ctx)
		if err != nil || s.In != in || s.First != isFirst || s.Others != others {
			t.Fatalf("got %+v, %v; want in %v, first %v, %d others", s, err, in, isFirst, others)
		}
		// It counts from before the question, not from the answer.
		if in && (s.Until.Before(before.Add(ttl)) || s.Until.After(time.Now().Add(ttl))) {
			t.Errorf("a lease until %v after the question", s.Until.Sub(before))
		}
	}
	enter := func(q *vip.Queue, name string) {
		t.Helper()
		if _, err := q.Enter(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	want(first, false, false, 0)
	enter(first, "cp1")
	want(first, true, true, 0)
	enter(second, "cp2")
	want(second, true, false, 1)
	want(first, true, true, 1)
	enter(first, "cp1") // an answer was lost
	want(first, true, true, 1)

	// A process of the same system that began anew: to the end of the queue, at once.
	again := open("boot-1")
	enter(again, "cp1")
	want(second, true, true, 1)
	want(again, true, false, 1)
	want(first, false, false, 2)

	// Another system of that name waits for the lease of the one before.
	other := open("boot-3")
	if _, err := other.Enter(ctx, "cp1"); err == nil || !strings.Contains(err.Error(), "another system of the name cp1 is in the queue") {
		t.Fatalf("another system: %v", err)
	}
	if err := second.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	want(again, true, true, 0)

	// A lease that nobody renews ends.
	last := places("boot-1")
	began := time.Now()
	enter(last, "cp1")
	for {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		s, err := other.Enter(ctx, "cp1")
		cancel()
		if err == nil && s.First {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("%+v %v", s, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if took := time.Since(began); took < vip.TTL-time.Second {
		t.Errorf("the lease ended after %v", took)
	}
	want(last, false, false, 0)

	// An etcd that is away for a moment.
	e.Down()
	for range 4 {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		if _, err := other.Ask(short); err == nil {
			t.Fatal("etcd is down, and answers")
		}
		cancel()
	}
	e.Up(t)
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		_, err := other.Ask(short)
		cancel()
		if err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatal(err)
		}
	}
	enter(other, "cp1") // if etcd has forgotten its lease
	want(other, true, true, 0)
}
