package serverapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

const day = 24 * time.Hour

// lived is a real agent on a host that is a directory, whose clock is the test's.
type lived struct {
	name string
	node *hosttest.Node
	log  *journal
	// address is of its API.
	address string
	stop    func()
}

// journal keeps what an agent says.
type journal struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.all.Write(b)
}

func (j *journal) count(what string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.all.String(), what)
}

// live starts an agent of an installed machine and has its key approved.
func (r *rig) live(c *clock, name, mac string) *lived {
	r.t.Helper()
	return r.liveWith(c, name, string(r.CAPEM()))
}

// liveWith is live for a machine that was given some CA.
func (r *rig) liveWith(c *clock, name, ca string) *lived {
	r.t.Helper()
	l := &lived{name: name, node: hosttest.New(r.t), log: &journal{}}
	for _, m := range r.cfg.Machines {
		if m.Name != name {
			continue
		}
		for file, text := range map[string]string{"/dev/console": "", "/proc/sys/kernel/random/boot_id": "boot\n", "/sys/class/dmi/id/product_serial": m.Serial + "\n"} {
			if err := l.node.WriteFile(file, []byte(text), 0o600); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	l.start(r, c, ca)
	code := line(r.t, l.node, `CODE +(\S+)`)
	r.soon(name+"'s key", func() bool { m, _ := r.store.Machine(name); return len(m.Pending) == 1 })
	if o := r.approve(name, code, false); !o.GetOk() {
		r.t.Fatal(o)
	}
	r.soon(name+"'s report", func() bool { _, ok := r.board.get(name); return ok })
	return l
}

// start starts the machine's agent, again after stop.
func (l *lived) start(r *rig, c *clock, ca string) {
	r.t.Helper()
	a := r.agent(l.node, ca)
	a.Config.Mode, a.Now, a.Log = nodeconf.Node, c.Now, slog.New(slog.NewTextHandler(l.log, nil))
	l.address = serveAPI(r.t, a)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("%s: %v", l.name, err)
		}
	})
	r.t.Cleanup(l.stop)
}

func (r *rig) soon(what string, good func() bool) {
	r.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !good(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("waiting for %s", what)
		}
	}
}

// certificate is what the agent has on its disk, with its key.
func (l *lived) certificate(t *testing.T) *tls.Certificate {
	t.Helper()
	cert, err1 := l.node.ReadFile(agent.CertPath)
	key, err2 := l.node.ReadFile(agent.KeyPath)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// left is for how long a certificate is good still.
func (l *lived) left(t *testing.T, c *clock) time.Duration {
	t.Helper()
	return l.certificate(t).Leaf.NotAfter.Sub(c.Now())
}

func agedRig(t *testing.T) (*rig, *clock, *kept) {
	t.Helper()
	c := newClock()
	cp, w := cp1(), w1()
	cp.Serial, w.Serial = "CP1-SERIAL", "W1-SERIAL"
	w2 := w1()
	w2.Name, w2.Serial, w2.MACs = "w2", "W2-SERIAL", []string{"52:54:00:00:00:03"}
	cfg := config(cp, w, w2)
	cfg.Now = c.Now
	r := &rig{t: t, dir: t.TempDir(), hold: 20 * time.Millisecond}
	k := r.keepCopies(c.Now)
	r.up(cfg)
	t.Cleanup(func() { r.stop() })
	return r, c, k
}
