package cli

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	thishost "github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// A restore takes a file that the server has saved with the key that opens it, when the manifest
// beside it is the server's and of this file; nothing is decrypted to the disk.
func TestARestoreTakesWhatTheServerHasSaved(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	ca, err := pki.NewCA("imagectl", 24*time.Hour, 0, now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewCA("imagectl", 24*time.Hour, 0, now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &remote{serverContext: serverContext{Cluster: "demo"}, roots: []*x509.Certificate{ca.Certificate()}}
	db := bytes.Repeat([]byte("secrets "), 512)
	sum := sha256.Sum256(db)
	content := append(db, sum[:]...)
	all := sha256.Sum256(content)
	recovery, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	name := files.Etcd.Name("demo", now)
	good := etcdsnap.Manifest{Format: 1, Cluster: "demo", Name: name, At: now, Machine: "cp2", Member: "abc", Revision: 7, Size: int64(len(content)), SHA256: hex.EncodeToString(all[:])}
	signed := func(by *pki.CA, change func(*etcdsnap.Manifest)) *etcdsnap.Manifest {
		m := good
		change(&m)
		var err error
		if m.Signature, err = by.Attest(etcdsnap.Domain, m.Statement()); err != nil {
			t.Fatal(err)
		}
		return &m
	}
	as := func(*etcdsnap.Manifest) {}
	for what, c := range map[string]struct {
		manifest *etcdsnap.Manifest
		content  []byte
		key      *age.X25519Identity
		name     string
		unsigned bool
		want     string
	}{
		"as the server saved it":      {manifest: signed(ca, as)},
		"with another key":            {manifest: signed(ca, as), key: stranger, want: "it is not encrypted to this key"},
		"without a manifest":          {want: name + ".json is not beside it, so nobody knows who made it"},
		"without one, on purpose":     {unsigned: true},
		"signed by somebody else":     {manifest: signed(other, as), want: "checking the manifest of " + name},
		"of another cluster":          {manifest: signed(ca, func(m *etcdsnap.Manifest) { m.Cluster = "prod" }), want: "it is of cluster prod, not demo"},
		"of another file":             {manifest: signed(ca, func(m *etcdsnap.Manifest) { m.Name = files.Etcd.Name("demo", now.Add(1)) }), name: files.Etcd.Name("demo", now.Add(time.Hour)), want: "it is of "},
		"another content":             {manifest: signed(ca, func(m *etcdsnap.Manifest) { m.SHA256 = strings.Repeat("0", 64) }), want: "the server saved 000"},
		"a content that is cut":       {manifest: signed(ca, as), content: content[:len(content)-512], want: "the digest at its end does not fit"},
		"a file under its own name":   {manifest: nil, name: "mine.age", unsigned: true},
		"one of its own, not trusted": {manifest: nil, name: "mine.age", want: "mine.age.json is not beside it"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if c.name == "" {
				c.name = name
			}
			if c.content == nil {
				c.content = content
			}
			if c.key == nil {
				c.key = recovery
			}
			path, key := filepath.Join(dir, c.name), filepath.Join(dir, "key")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			w, err := age.Encrypt(f, recovery.Recipient())
			if err == nil {
				_, err = w.Write(c.content)
			}
			if err := errors.Join(err, w.Close(), f.Close(), os.WriteFile(key, []byte(c.key.String()+"\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
			if c.manifest != nil {
				b, err := json.Marshal(c.manifest)
				if err == nil {
					err = os.WriteFile(path+etcdsnap.ManifestEnd, b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			file, from, err := (&globals{}).openSnapshot(t.Context(), r, path, savedSnapshot{identity: key, unsigned: c.unsigned})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %s", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer file.close()
			if from.GetSha256() != good.SHA256 || from.GetSize() != uint64(good.Size) {
				t.Errorf("it is %v", from)
			}
			for range 2 { // it is sent again where a node was not ready
				in, err := file.read()
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, content) {
					t.Errorf("what is sent has %d bytes: %v", len(got), err)
				}
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err != nil || bytes.Contains(b, []byte("secrets secrets")) {
					t.Errorf("%s has it in the clear: %v", e.Name(), err)
				}
			}
		})
	}
	// Without the key the name says what it is.
	path := filepath.Join(t.TempDir(), name)
	if _, _, err := (&globals{}).openSnapshot(t.Context(), r, path, savedSnapshot{}); err == nil || !strings.Contains(err.Error(), "name the recovery key with --identity") {
		t.Errorf("without a key: %v", err)
	}
}

// A check that died of what it read says that the snapshot is broken; one that was ended, or did not
// begin, says nothing about it.
func TestWhatACheckThatEndedMeans(t *testing.T) {
	t.Parallel()
	for cause, broken := range map[string]bool{"exit status 2": true, "signal: bus error": true, "signal: segmentation fault": true, "signal: killed": false, "exit status 1": false, "fork/exec: no such file": false} {
		if got := endedByDatabase(&thishost.RunError{Cause: errors.New(cause)}); got != broken {
			t.Errorf("%s: %v", cause, got)
		}
	}
	if !endedByDatabase(&thishost.RunError{Output: []byte("imagectl: x: the database in the snapshot is not whole: 1 findings"), Cause: errors.New("exit status 1")}) {
		t.Error("a finding is none")
	}
}

func TestSnapshotsAreListed(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := printSnapshots(&out, &api.ListEtcdSnapshotsResponse{Directory: "/mnt", Bucket: "s3://vault/etcd-snapshots/", Problems: []string{"no way"}, Snapshots: []*api.EtcdSnapshotView{
		{Name: "b", Machine: "cp2", Revision: 7, Snapshot: &api.EtcdSnapshot{Size: 5 << 20}, InDirectory: true, InBucket: true}, {Name: "a", InBucket: true},
	}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cp2", "5 MiB", "directory, bucket", "directory of the server: /mnt; bucket: s3://vault/etcd-snapshots/", "warning: no way"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
