package nodecopy

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// keeper is a node that keeps a backup, or says so.
type keeper struct {
	apiconnect.UnimplementedNodeServiceHandler
	copy   files.Copy
	pieces []string
	// stalls: nothing comes after the pieces, and no end; silent: nor before.
	stalls, silent bool
}

func (k keeper) ReadBackup(ctx context.Context, _ *connect.Request[api.ReadBackupRequest], out *connect.ServerStream[api.ReadBackupResponse]) error {
	if k.silent {
		<-ctx.Done()
		return ctx.Err()
	}
	c := k.copy
	if err := out.Send(&api.ReadBackupResponse{Copy: &api.BackupCopy{Name: c.Name, Size: uint64(c.Size), Sha256: c.SHA256, Signature: c.Signature}}); err != nil {
		return err
	}
	for _, p := range k.pieces {
		if err := out.Send(&api.ReadBackupResponse{Chunk: []byte(p)}); err != nil {
			return err
		}
	}
	if k.stalls {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// The newest copy is worth nothing when its node does not give it: on the day when the server
// is lost, no single node keeps an operator from the next newest.
func TestANodeThatFailsOnTheWayHidesNoOtherCopy(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Millisecond)
	ca, err := pki.NewCA("imagectl", 24*time.Hour, 48*time.Hour, now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certificate := func(p pki.Profile, err error) tls.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		key, err := pki.NewKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		own, err := pki.OwnKey(key)
		if err != nil {
			t.Fatal(err)
		}
		issued, err := ca.Sign(p, own, now, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{issued.Certificate.Raw}, PrivateKey: key, Leaf: issued.Certificate}
	}
	signed := func(at time.Time, content string) files.Copy {
		sum := sha256.Sum256([]byte(content))
		c := files.Copy{Name: files.Name("demo", at), Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
		if c.Signature, err = ca.Attest(files.Domain, c.Statement("demo")); err != nil {
			t.Fatal(err)
		}
		return c
	}
	serve := func(name string, k keeper) string {
		own := certificate(pki.Node(pki.Machine{Cluster: "demo", Name: name}, pki.Lifetimes{Agent: time.Hour}))
		mux := http.NewServeMux()
		mux.Handle(apiconnect.NewNodeServiceHandler(k))
		srv := httptest.NewUnstartedServer(mux)
		srv.EnableHTTP2 = true
		srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{own}}
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.Listener.Addr().String()
	}
	const content = "the state of a server"
	newest, older := signed(now, content), signed(now.Add(-time.Hour), content)
	old := serve("old", keeper{copy: older, pieces: []string{content[:4], content[4:]}})
	s := Source{Cluster: "demo", CAs: []*x509.Certificate{ca.Certificate()}, Certificate: certificate(pki.Operator("demo", "ada", pki.RoleAdmin, pki.Lifetimes{})), Now: time.Now}
	for what, c := range map[string]struct {
		keeper
		told string // empty: the newest came
		// late is which wait comes to its end: three nodes are asked, then pieces come. 0 for none.
		late int
	}{
		"as it should be":   {keeper{copy: newest, pieces: []string{content}}, "", 0},
		"damaged":           {keeper{copy: newest, pieces: []string{"The" + content[3:]}}, "fetching " + newest.Name + " from new: reading the backup that was just written: ", 0},
		"cut off":           {keeper{copy: newest, pieces: []string{content[:4]}}, "fetching " + newest.Name + " from new: reading the backup that was just written: ", 0},
		"without end":       {keeper{copy: newest, pieces: []string{content, content}}, "fetching " + newest.Name + " from new: more comes than its 21 bytes", 0},
		"stopped half way":  {keeper{copy: newest, pieces: []string{content[:4]}, stalls: true}, "fetching " + newest.Name + " from new: nothing came for 20s", 5},
		"silent":            {keeper{silent: true}, ": nothing came for 20s", 2},
		"older than it was": {keeper{copy: files.Copy{Name: newest.Name, Size: older.Size, SHA256: older.SHA256, Signature: older.Signature}}, "the signature is not by imagectl", 0},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := s
			waits := 0
			s.after = func(d time.Duration, f func()) *time.Timer {
				if waits++; waits == c.late {
					d = 0
				}
				return time.AfterFunc(d, f)
			}
			var told []string
			got, err := s.Fetch(t.Context(), []string{old, serve("new", c.keeper), old}, t.TempDir(), func(err error) { told = append(told, err.Error()) })
			if err != nil {
				t.Fatal(err)
			}
			want, from := older.Name, "old"
			if c.told == "" {
				want, from = newest.Name, "new"
			}
			if b, err := os.ReadFile(got.Path); err != nil || string(b) != content || got.File.Name != want || got.Node != from {
				t.Errorf("got %+v %q, %v", got, b, err)
			}
			if c.told == "" != (len(told) == 0) || len(told) > 1 || c.told != "" && !strings.Contains(told[0], c.told) {
				t.Errorf("told %q, want %q", told, c.told)
			}
		})
	}
	if _, err := s.Fetch(t.Context(), []string{serve("new", keeper{copy: newest, pieces: []string{"x"}})}, t.TempDir(), func(error) {}); err == nil || !strings.HasPrefix(err.Error(), "fetching "+newest.Name+" from new: ") {
		t.Errorf("when no other has one: %v", err)
	}
}
