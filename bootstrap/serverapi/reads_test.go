package serverapi

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Who stole a control plane's certificate reads the whole log, or a backup, a few times and then
// once in ten minutes. What follows the log is read as ever, and the others are not concerned.
func TestNobodyReadsTheSameOverAndOver(t *testing.T) {
	t.Parallel()
	c := newClock()
	other := cp1()
	other.Name, other.MACs, other.Serial, other.UUID = "cp2", []string{"52:54:00:00:00:09"}, "", ""
	cfg := config(cp1(), other)
	cfg.Now = c.Now
	r := &rig{t: t, dir: t.TempDir(), hold: 20 * time.Millisecond}
	k := r.keepCopies(c.Now)
	r.up(cfg)
	t.Cleanup(func() { r.stop() })
	stolen, good := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("cp2", "52:54:00:00:00:09")
	followTo := func(f *fake, after, to uint64) (n uint64, err error) {
		s, err := f.agent().FetchAudit(t.Context(), connect.NewRequest(&api.FetchAuditRequest{After: after, To: to}))
		if err != nil {
			return 0, err
		}
		defer s.Close()
		for s.Receive() {
			n += uint64(len(s.Msg().GetLines()))
		}
		return n, s.Err()
	}
	follow := func(f *fake, after uint64) (uint64, error) { return followTo(f, after, 0) }
	refused := func(what string, err error) {
		t.Helper()
		if connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), "too often") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for range 6 {
		if err := r.change(t.Context(), r.self(), func(c *change) error {
			for range rereadFree / 4 {
				c.log(audit.Entry{Action: "test"})
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	// The first time it is news, then it is not.
	var last uint64
	for range 1 + rereadsBurst {
		var err error
		if last, err = follow(stolen, 0); err != nil || last == 0 {
			t.Fatalf("%d entries, %v", last, err)
		}
	}
	_, err := follow(stolen, 0)
	refused("the log again", err)
	_, err = follow(stolen, last-rereadFree-1)
	refused("its end again", err)
	if n, err := follow(stolen, last-rereadFree); err != nil || n != rereadFree {
		t.Errorf("what may be read at any time: %d entries, %v", n, err)
	}
	if n, err := follow(stolen, last); err != nil || n != 0 {
		t.Errorf("what comes behind it: %d entries, %v", n, err)
	}
	// A wish for what is far ahead is no way to shut the machine itself out.
	if _, err := follow(stolen, 1<<60); err != nil {
		t.Error(err)
	}
	r.operator(pki.RoleAdmin) // an entry of the log
	if _, err := follow(stolen, last); err != nil {
		t.Errorf("what follows: %v", err)
	}
	// Who asks for no more than it was told of reads nothing twice, however fast the log grows.
	at := uint64(0)
	for range 2 * rereadsBurst {
		n, err := followTo(good, at, at+20)
		if err != nil || n != 20 {
			t.Fatalf("entries behind %d: %d, %v", at, n, err)
		}
		at += n
	}
	if _, err := follow(good, at); err != nil {
		t.Errorf("another machine: %v", err)
	}
	c.pass(rereadsEvery)
	if _, err := follow(stolen, 0); err != nil {
		t.Errorf("after a while: %v", err)
	}
	// The same allowance holds for backups.
	file, err := k.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(f *fake) error {
		s, err := f.agent().FetchBackup(t.Context(), connect.NewRequest(&api.FetchBackupRequest{Name: file.Name}))
		if err != nil {
			return err
		}
		defer s.Close()
		for s.Receive() {
		}
		return s.Err()
	}
	if err := fetch(stolen); err != nil {
		t.Errorf("a backup that is news: %v", err)
	}
	refused("the backup again", fetch(stolen))
	for range 1 + rereadsBurst {
		if err := fetch(good); err != nil {
			t.Error(err)
		}
	}
	refused("the backup again, another machine", fetch(good))
	// Asking for news all the time has an end too.
	for range movesBurst {
		_, err = follow(good, 1<<60)
	}
	refused("news, all the time", err)
}
