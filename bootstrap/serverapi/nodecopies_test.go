package serverapi

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/backup/nodecopy"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// kept is what a rig saves in a directory, and gives to control planes.
type kept struct {
	*backup.Keeper
	dir string
	key *age.X25519Identity
}

// keepCopies makes the next server save its state, for nodes too.
func (r *rig) keepCopies(now func() time.Time) *kept {
	r.t.Helper()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		r.t.Fatal(err)
	}
	k := &kept{dir: r.t.TempDir(), key: key}
	r.keeps = func(st *store.Store) *backup.Keeper {
		k.Keeper, err = backup.NewKeeper(backup.Config{
			Header: backup.Header{Cluster: "demo", Servers: []string{r.url}}, Store: st, Recipients: []age.Recipient{key.Recipient()},
			Dir: k.dir, Every: 6 * time.Hour, Keep: 3, Nodes: 2, Now: now, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			r.t.Fatal(err)
		}
		return k.Keeper
	}
	return k
}

// serveAPI gives an agent a listener for its API.
func serveAPI(t *testing.T, a *agent.Agent) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	a.API = ln
	return ln.Addr().String()
}

// source asks nodes as an operator does who has a context file: the admin is on record.
func (r *rig) source(role pki.Role, now func() time.Time) nodecopy.Source {
	r.t.Helper()
	if role == pki.RoleAdmin {
		return r.sourceOf(now)(r.Local(r.t.Context(), "ada"))
	}
	return r.sourceOf(now)(r.Operator(r.t.Context(), "ada", role))
}

func (r *rig) sourceOf(now func() time.Time) func(cert, key []byte, _ time.Time, err error) nodecopy.Source {
	return func(cert, key []byte, _ time.Time, err error) nodecopy.Source {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			r.t.Fatal(err)
		}
		return nodecopy.Source{Cluster: "demo", CAs: r.trust.Load().trusted, Certificate: pair, Now: now}
	}
}

// A real agent of a control plane fetches each backup, and gives it to an admin whose
// certificate has ended with the server that made it.
func TestAServerComesBackOutOfANodesCopy(t *testing.T) {
	t.Parallel()
	c := newClock()
	cp, w := cp1(), w1()
	cp.Serial = "CP1-SERIAL"
	cfg := config(cp, w)
	cfg.Now = c.Now
	r := &rig{t: t, dir: t.TempDir(), hold: 20 * time.Millisecond}
	k := r.keepCopies(c.Now)
	r.up(cfg)
	t.Cleanup(func() { r.stop() })

	node := hosttest.New(t)
	a := r.agent(node, string(r.CAPEM()))
	a.Config.Mode, a.Now = nodeconf.Node, c.Now
	if err := node.WriteFile("/sys/class/dmi/id/product_serial", []byte("CP1-SERIAL\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	address := serveAPI(t, a)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the agent: %v", err)
		}
	})
	t.Cleanup(stop)
	until := func(what string, good func() bool) {
		t.Helper()
		for end := time.Now().Add(3 * time.Minute); !good(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waiting for %s; status says:\n%s", what, r.allNotes())
			}
		}
	}
	until("the request", func() bool { rec, _ := r.store.Machine("cp1"); return len(rec.Pending) == 1 })
	if o := r.approve("cp1", line(t, node, `CODE +(\S+)`), false); !o.GetOk() {
		t.Fatal(o)
	}
	until("its first report", func() bool { _, ok := r.board.get("cp1"); return ok })
	dismissed := r.sourceOf(c.Now)(r.Operator(t.Context(), "eve", pki.RoleAdmin))
	admin, clerk, reader := r.source(pki.RoleAdmin, c.Now), r.source(pki.RoleBackup, c.Now), r.source(pki.RoleReader, c.Now)
	var failed []string
	fetch := func(s nodecopy.Source, addresses ...string) (nodecopy.Fetched, error) {
		return s.Fetch(t.Context(), addresses, t.TempDir(), func(err error) { failed = append(failed, err.Error()) })
	}
	// Its API answers when it has taken its first directive.
	until("word that there is no backup yet", func() bool {
		_, err := fetch(admin, address)
		return err != nil && strings.Contains(err.Error(), "this node keeps no backup")
	})
	var last files.File
	var err error
	for range 3 {
		c.pass(time.Minute)
		if last, err = k.Save(t.Context()); err != nil {
			t.Fatal(err)
		}
		until("the copy", func() bool {
			ks := r.keepers()
			return len(ks) == 1 && ks[0].newest.Name == last.Name && ks[0].problem == ""
		})
	}
	if !strings.Contains(r.allNotes(), "copies of the newest backup are on cp1") {
		t.Error(r.allNotes())
	}
	if n := len(r.audited("backup-copied")); n != 3 {
		t.Errorf("%d entries of the audit log tell of copies", n)
	}
	if _, err := fetch(reader, address); err == nil || !strings.Contains(err.Error(), "with the role reader may not call") {
		t.Errorf("a reader: %v", err)
	}
	if _, err := fetch(clerk, address); err != nil {
		t.Errorf("who has the role backup: %v", err)
	}
	// Nobody but control planes gets one, and no other than the newest.
	worker := r.approvedMachine("w1", "52:54:00:00:00:02")
	ask := func(f *fake, name string) error {
		s, err := f.agent().FetchBackup(t.Context(), connect.NewRequest(&api.FetchBackupRequest{Name: name}))
		if err == nil {
			defer s.Close()
			for s.Receive() {
			}
			err = s.Err()
		}
		return err
	}
	if err := ask(worker, last.Name); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a worker asks for a backup: %v", err)
	}
	if resp := worker.sync(running()); resp.GetBackup() != nil {
		t.Errorf("a worker is told of %v", resp.GetBackup())
	}

	// The server is gone for long, and with it what renews certificates. Its disk is lost.
	r.stop()
	if err := errors.Join(os.RemoveAll(r.dir), os.RemoveAll(k.dir)); err != nil {
		t.Fatal(err)
	}
	c.pass(40 * 24 * time.Hour)
	if _, err := fetch(clerk, address); err == nil {
		t.Error("who has the role backup is let in with an old certificate")
	}
	if _, err := fetch(dismissed, address); err == nil || strings.Contains(err.Error(), "keeps no backup") {
		t.Errorf("who is no admin is let in with an old certificate: %v", err)
	}
	got, err := fetch(admin, "127.0.0.1:1", address)
	if err != nil || got.File.Name != last.Name || got.File.Size != last.Size || got.Node != "cp1" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if len(failed) != 1 || !strings.HasPrefix(failed[0], "asking 127.0.0.1:1 for a backup: ") {
		t.Errorf("of a node that is away it says %q", failed)
	}
	if b, err := node.ReadFile(agent.StateDir + "/audit.jsonl"); err != nil || !strings.Contains(string(b), `"detail":"`+last.Name+", with a certificate that expired at ") {
		t.Errorf("the node's own log: %s, %v", b, err)
	}
	r.keeps = nil
	at := c.Now()
	r.restore(cfg, saved{got.Path, k.key}, at)
	until("the node's report", func() bool { b, ok := r.board.get("cp1"); return ok && !b.at.Before(at) })
	if len(r.audited("server-restored")) != 1 {
		t.Error("the log does not tell of the restore")
	}
}
