package nodeapi

import (
	"context"
	"crypto/tls"
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
