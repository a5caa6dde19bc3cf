package agent

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// offer is a backup that the server has signed and hands out.
func (l *lab) offer(ca *pki.CA, hour int, content string, keep uint32) *api.BackupCopy {
	l.t.Helper()
	c := files.Copy{Name: files.Name("lab", time.Date(2026, 5, 1, hour, 0, 0, 0, time.UTC)), Size: int64(len(content)), SHA256: digest([]byte(content))}
	b, err := ca.Attest(files.Domain, c.Statement("lab"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.set(func() {
		if l.backups == nil {
			l.backups = map[string]string{}
		}
		l.backups[c.Name] = content
	})
	return &api.BackupCopy{Name: c.Name, Size: uint64(c.Size), Sha256: c.SHA256, Signature: b, Keep: keep}
}

// A node keeps the newest few of what the server has signed, and nothing else.
func TestANodeKeepsCopiesOfTheServersBackups(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	take := func(c *api.BackupCopy) error {
		n.wantBackup(c)
		return n.takeBackup(context.Background())
	}
	kept := func() string {
		var out []string
		for _, name := range n.news().backups {
			_, in, err := n.Backup(name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			in.Close()
			out = append(out, string(b))
		}
		return strings.Join(out, ", ")
	}
	if _, _, err := n.Backup(""); err == nil || !strings.HasPrefix(err.Error(), "this node keeps no backup") {
		t.Errorf("before the first: %v", err)
	}
	for hour, content := range []string{"the first", "the second", "the third"} {
		if err := take(l.offer(l.ca, hour, content, 2)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := kept(), "the third, the second"; got != want {
		t.Errorf("kept %s, want %s", got, want)
	}
	if c, in, err := n.Backup(""); err != nil || c.Size != int64(len("the third")) {
		t.Errorf("the newest is %+v, %v", c, err)
	} else {
		in.Close()
	}

	for what, c := range map[string]struct {
		copy *api.BackupCopy
		want string
	}{
		"signed by another CA": {l.offer(l.etcd, 4, "forged", 2), "the signature is not by imagectl"},
		"torn on its way": {func() *api.BackupCopy {
			c := l.offer(l.ca, 5, "all of it", 2)
			l.set(func() { l.backups[c.GetName()] = "all of" })
			return c
		}(), "the server made 9"},
		"longer than it says": {func() *api.BackupCopy {
			c := l.offer(l.ca, 6, "all of it", 2)
			l.set(func() { l.backups[c.GetName()] = "all of it and more" })
			return c
		}(), "more comes than its 9 bytes"},
		"with another content": {func() *api.BackupCopy {
			c := l.offer(l.ca, 7, "all of it", 2)
			l.set(func() { l.backups[c.GetName()] = "all of is" })
			return c
		}(), "the server made 9"},
		"gone": {func() *api.BackupCopy {
			c := l.offer(l.ca, 8, "gone", 2)
			l.set(func() { delete(l.backups, c.GetName()) })
			return c
		}(), "there is no such backup"},
	} {
		if err := take(c.copy); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", what, err, c.want)
		}
	}
	names, err := n.Host.Glob(backupsPath + "/*")
	if err != nil || len(names) != 3 || kept() != "the third, the second" {
		t.Errorf("kept %s; there are %v, %v", kept(), names, err)
	}
	for name, want := range map[string]string{backupsPath: "-rwx------", backupsIndex: "-rw-------", backupsPath + "/" + n.news().backups[0]: "-rw-------"} {
		if mode, err := n.Host.Mode(name); err != nil || mode.String() != want {
			t.Errorf("%s: mode %v, %v", name, mode, err)
		}
	}

	// A restart finds what is there still, and what a crash left behind goes with the next.
	if err := n.Host.Remove(backupsPath + "/" + n.news().backups[1]); err != nil {
		t.Fatal(err)
	}
	l.put(backupsPath+"/"+files.Name("lab", time.Date(2026, 5, 1, 9, 0, 0, 0, time.UTC)), "no index names it")
	n = l.newNode()
	if err := n.loadBackups(); err != nil || kept() != "the third" {
		t.Errorf("after a restart: %s, %v", kept(), err)
	}
	// The server that comes out of an old backup is behind.
	if err := take(l.offer(l.ca, 1, "of a restored server", 1)); err != nil || kept() != "of a restored server" {
		t.Errorf("kept %s, %v", kept(), err)
	}
	if all, err := files.List(n.Host.Path(backupsPath)); err != nil || len(all) != 1 {
		t.Errorf("there are %v, %v", all, err)
	}
}

// An agent that runs fetches what it is told of, and says what it keeps or why not.
func TestAnAgentReportsItsCopies(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	run := runOf(&api.Run{Machine: "cp1", Cluster: "lab", ClientCaPem: string(l.ca.CertificatePEM())})
	run.Backup = l.offer(l.etcd, 1, "forged", 1)
	l.direct(run)
	l.start(nodeconf.Node)
	l.wait("the problem", func(r *api.SyncRequest) bool {
		return strings.Contains(r.GetBackupProblem(), "the signature is not by imagectl")
	})
	run = runOf(&api.Run{Machine: "cp1", Cluster: "lab", ClientCaPem: string(l.ca.CertificatePEM())})
	run.Backup = l.offer(l.ca, 2, "good", 1)
	l.direct(run)
	l.wait("the copy", func(r *api.SyncRequest) bool {
		return r.GetBackupProblem() == "" && slices.Equal(r.GetBackups(), []string{run.GetBackup().GetName()})
	})
}

// A backup that cannot be kept is fetched again after a while, and not with each answer of
// the server: it may have a hundred megabytes.
func TestABackupIsNotFetchedWithEachAnswer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	woken := func() bool {
		select {
		case <-n.backup:
			return true
		default:
			return false
		}
	}
	for _, c := range []struct {
		told *api.BackupCopy
		want bool
	}{{nil, false}, {l.offer(l.ca, 1, "torn", 1), true}, {l.offer(l.ca, 1, "torn", 1), false}, {nil, false}, {l.offer(l.ca, 1, "whole", 1), true}, {l.offer(l.ca, 2, "whole", 1), true}} {
		if n.wantBackup(c.told); woken() != c.want {
			t.Errorf("told of %v: woken %v", c.told, !c.want)
		}
	}
}

// A node's own log is a chain over restarts and files, and what cannot be read is kept.
func TestANodeRecordsWhatNoServerSaw(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	add := func(what string) {
		t.Helper()
		if err := n.Record(audit.Entry{Action: "backup-read", Detail: what}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(tip audit.Tip, file string) audit.Tip {
		t.Helper()
		for line := range bytes.Lines([]byte(l.read(file))) {
			var err error
			if _, tip, err = audit.Open(tip, line); err != nil {
				t.Fatal(err)
			}
		}
		return tip
	}
	add("one")
	n = l.newNode()
	add(strings.Repeat("x", recordMax))
	n = l.newNode()
	add("in another file")
	tip := check(audit.Tip{}, recordPath+".1")
	if got := check(tip, recordPath); tip.Seq != 2 || got.Seq != 3 {
		t.Errorf("the old file ends with %d, the new one with %d", tip.Seq, got.Seq)
	}
	if mode, err := n.Host.Mode(recordPath); err != nil || mode != 0o600 {
		t.Errorf("mode %v, %v", mode, err)
	}
	l.put(recordPath, "half of")
	add("after that")
	if got := check(audit.Tip{}, recordPath); got.Seq != 1 || l.read(recordPath+".1") != "half of" {
		t.Errorf("it goes on with %d; kept %q", got.Seq, l.read(filepath.Base(recordPath)))
	}
}
