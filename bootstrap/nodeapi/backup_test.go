package nodeapi

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Every call × every caller × an expired certificate: one may be made, by one role.
func TestOneCallMayBeLate(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	certs := map[string]tls.Certificate{}
	var end time.Time
	for _, role := range pki.Roles() {
		certs[string(role)] = l.cert(l.ca, l.profile("operator", role))
		end = certs[string(role)].Leaf.NotAfter
	}
	certs["of another cluster"] = l.cert(l.ca, l.profile("operator of another cluster", pki.RoleAdmin))
	certs["server"], certs["node"] = l.cert(l.ca, l.profile("server", "")), l.cert(l.ca, l.profile("node", ""))
	if e := certs["server"].Leaf.NotAfter; e.After(end) {
		end = e
	}
	l.at(end.Add(40 * 24 * time.Hour))
	l.knows(Admin{Name: "jo@example.org"})
	for who, cert := range certs {
		for _, procedure := range calls(t) {
			err := call(l.client(cert), procedure)
			if may := who == "admin" && procedure == apiconnect.NodeServiceReadBackupProcedure; may != (err == nil) {
				t.Errorf("%s: %s: got %v, want allowed %v", who, procedure, err, may)
			}
			// Nobody else gets through the handshake even.
			if code := connect.CodeOf(err); err != nil && (code == connect.CodePermissionDenied) != (who == "admin") {
				t.Errorf("%s: %s: got %v", who, procedure, err)
			}
		}
	}
	admin := certs["admin"]
	want := "permission_denied: the caller's certificate has expired at " + admin.Leaf.NotAfter.UTC().Format(time.RFC3339)
	if err := call(l.client(admin), apiconnect.NodeServiceHealthProcedure); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	l.revoke(1, admin)
	if err := call(l.client(admin), apiconnect.NodeServiceReadBackupProcedure); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "is revoked") {
		t.Errorf("an expired and revoked certificate: %v", err)
	}
	// Lists forget what has expired; who was dismissed is no admin any more.
	other := l.cert(l.ca, l.profile("operator", pki.RoleAdmin))
	sum := sha256.Sum256(other.Leaf.RawSubjectPublicKeyInfo)
	own := hex.EncodeToString(sum[:])
	for what, c := range map[string]struct {
		admins []Admin
		may    bool
	}{
		"nobody is one":         {nil, false},
		"dismissed":             {[]Admin{{Name: "ada"}}, false},
		"with a key of before":  {[]Admin{{Name: "jo@example.org", Key: strings.Repeat("0", 64)}}, false},
		"another's key":         {[]Admin{{Name: "ada", Key: own}}, false},
		"with the own key":      {[]Admin{{Name: "ada"}, {Name: "jo@example.org", Key: own}}, true},
		"who has no key for it": {[]Admin{{Name: "jo@example.org"}}, true},
	} {
		l.knows(c.admins...)
		client := l.client(other)
		if err := call(client, apiconnect.NodeServiceReadBackupProcedure); c.may != (err == nil) {
			t.Errorf("%s: %v", what, err)
		}
		if !c.may {
			continue
		}
		// On a connection that is open already, too.
		l.knows()
		if err := call(client, apiconnect.NodeServiceReadBackupProcedure); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s, and dismissed then: %v", what, err)
		}
	}
	// One that begins in the future is no older than it should be.
	l.at(admin.Leaf.NotBefore.Add(-time.Hour))
	if err := call(l.client(certs["backup"]), apiconnect.NodeServiceReadBackupProcedure); err == nil {
		t.Error("a certificate that is not valid yet is let in")
	}
}

// Who reads a backup is in the node's log before anything leaves.
func TestReadingABackupIsRecordedFirst(t *testing.T) {
	t.Parallel()
	r := &record{}
	l := newLabOf(t, fake{record: r})
	cert := l.cert(l.ca, l.profile("operator", pki.RoleAdmin))
	read := func() (string, error) {
		s, err := l.client(cert).ReadBackup(context.Background(), connect.NewRequest(&api.ReadBackupRequest{Name: "newest"}))
		if err != nil {
			return "", err
		}
		defer s.Close()
		n, first := 0, ""
		for s.Receive() {
			if c := s.Msg().GetCopy(); c != nil {
				first = fmt.Sprintf("%s %d %s %s", c.GetName(), c.GetSize(), c.GetSha256(), c.GetSignature())
			}
			n += len(s.Msg().GetChunk())
		}
		return fmt.Sprintf("%s: %d", first, n), s.Err()
	}
	if got, err := read(); err != nil || got != fmt.Sprintf("newest %d aa signed: %[1]d", 3*backupChunk/2) {
		t.Errorf("got %s, %v", got, err)
	}
	l.at(cert.Leaf.NotAfter.Add(time.Hour))
	l.knows(Admin{Name: "jo@example.org"})
	if _, err := read(); err != nil {
		t.Error(err)
	}
	for i, want := range []string{"newest", "newest, with a certificate that expired at " + cert.Leaf.NotAfter.UTC().Format(time.RFC3339)} {
		if e := r.entries[i]; e.Action != "backup-read" || e.Detail != want || e.Actor.Subject != "imagectl://lab/operator/jo@example.org" || e.Actor.Serial != pki.Serial(cert.Leaf) || e.Actor.Source != "127.0.0.1" {
			t.Errorf("entry %d: %+v", i, e)
		}
	}
	r.fails = errors.New("the disk is full")
	if got, err := read(); err == nil || got != ": 0" || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("what cannot be recorded: %q, %v", got, err)
	}
	s := &service{backups: make(chan struct{}, 1)}
	s.backups <- struct{}{}
	if err := s.ReadBackup(context.Background(), connect.NewRequest(&api.ReadBackupRequest{}), nil); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("too many: %v", err)
	}
}
