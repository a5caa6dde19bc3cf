package serverapi

import (
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// procedures is every call of the wire contract that this server could serve,
// taken from the contract itself.
func procedures() []string {
	var out []string
	for _, f := range []protoreflect.FileDescriptor{api.File_imagectl_v1_enrol_proto, api.File_imagectl_v1_agent_proto, api.File_imagectl_v1_operator_proto, api.File_imagectl_v1_node_proto} {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				out = append(out, fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name()))
			}
		}
	}
	return out
}

// try calls with an empty message and tells how authorization went.
func try(t *testing.T, c *http.Client, url, procedure string) string {
	t.Helper()
	contentType := "application/proto"
	body := ""
	if procedure == apiconnect.OperatorServiceWatchMachinesProcedure {
		contentType, body = "application/connect+proto", "\x00\x00\x00\x00\x00"
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+procedure, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.Do(req)
	if err != nil {
		return "no connection"
	}
	defer resp.Body.Close()
	if contentType == "application/connect+proto" {
		b := make([]byte, 256)
		n, _ := io.ReadAtLeast(resp.Body, b, 6)
		for _, code := range []string{"unauthenticated", "permission_denied"} {
			if strings.Contains(string(b[:n]), code) {
				return code
			}
		}
		return "allowed"
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return "unauthenticated"
	case http.StatusForbidden:
		return "permission_denied"
	}
	return "allowed"
}

// whoMay is the table of every call × every kind of caller.
func whoMay() map[string]map[string]string {
	const yes, who, no = "allowed", "unauthenticated", "permission_denied"
	nodes := map[string]string{"nobody": who, "node": yes, "admin": no, "operator": no, "reader": no, "backup": no}
	reads := map[string]string{"nobody": who, "node": no, "admin": yes, "operator": yes, "reader": yes, "backup": no}
	writes := map[string]string{"nobody": who, "node": no, "admin": yes, "operator": yes, "reader": no, "backup": no}
	admins := map[string]string{"nobody": who, "node": no, "admin": yes, "operator": no, "reader": no, "backup": no}
	nobody := map[string]string{"nobody": who, "node": no, "admin": no, "operator": no, "reader": no, "backup": no}
	return map[string]map[string]string{
		// Passed on to nodes, but for those that are for nodes themselves only.
		"/imagectl.v1.NodeService/AuditHeads":      nobody,
		"/imagectl.v1.NodeService/ReadBackup":      nobody,
		"/imagectl.v1.NodeService/EtcdStatus":      reads,
		"/imagectl.v1.NodeService/EtcdSnapshot":    admins,
		"/imagectl.v1.NodeService/PutEtcdSnapshot": admins,
		"/imagectl.v1.NodeService/Act":             nobody,
		"/imagectl.v1.NodeService/Version":         {"nobody": who, "node": no, "admin": yes, "operator": yes, "reader": yes, "backup": yes},
		"/imagectl.v1.NodeService/Health":          reads,
		"/imagectl.v1.NodeService/Logs":            reads,
		"/imagectl.v1.NodeService/Dmesg":           reads,
		"/imagectl.v1.NodeService/Units":           reads,
		"/imagectl.v1.NodeService/Processes":       reads,
		"/imagectl.v1.NodeService/Disks":           reads,
		"/imagectl.v1.NodeService/Network":         reads,
		"/imagectl.v1.NodeService/Time":            reads,
		"/imagectl.v1.NodeService/Containers":      reads,
		"/imagectl.v1.NodeService/ContainerLogs":   reads,
		"/imagectl.v1.NodeService/ReadFile":        writes,
		"/imagectl.v1.NodeService/Capture":         writes,
		"/imagectl.v1.NodeService/Bundle":          writes,

		"/imagectl.v1.EnrolService/Enrol":                  {"nobody": yes, "node": yes, "admin": yes, "operator": yes, "reader": yes, "backup": yes},
		"/imagectl.v1.EnrolService/RenewOperator":          {"nobody": yes, "node": yes, "admin": yes, "operator": yes, "reader": yes, "backup": yes},
		"/imagectl.v1.AgentService/Sync":                   nodes,
		"/imagectl.v1.AgentService/ReportInstall":          nodes,
		"/imagectl.v1.AgentService/IssueCertificates":      nodes,
		"/imagectl.v1.AgentService/FetchKubernetesSecrets": nodes,
		"/imagectl.v1.AgentService/FetchBackup":            nodes,
		"/imagectl.v1.AgentService/FetchAudit":             nodes,
		"/imagectl.v1.OperatorService/ListAuditSignatures": reads,
		"/imagectl.v1.OperatorService/ListMachines":        reads,
		"/imagectl.v1.OperatorService/WatchMachines":       reads,
		"/imagectl.v1.OperatorService/Why":                 reads,
		"/imagectl.v1.OperatorService/Status":              reads,
		"/imagectl.v1.OperatorService/ApproveMachine":      writes,
		"/imagectl.v1.OperatorService/RejectMachine":       writes,
		"/imagectl.v1.OperatorService/ArmMachine":          writes,
		"/imagectl.v1.OperatorService/DisarmMachine":       writes,
		"/imagectl.v1.OperatorService/PowerMachine":        writes,
		"/imagectl.v1.OperatorService/RetireMachine":       writes,
		"/imagectl.v1.OperatorService/ReplaceMachine":      writes,
		"/imagectl.v1.OperatorService/IssueToken":          writes,
		"/imagectl.v1.OperatorService/DefragmentEtcd":      writes,
		"/imagectl.v1.OperatorService/RestoreEtcd":         admins,
		"/imagectl.v1.OperatorService/ListEtcdSnapshots":   {"nobody": who, "node": no, "admin": yes, "operator": yes, "reader": yes, "backup": yes},
		"/imagectl.v1.OperatorService/ActMachine":          writes,
		"/imagectl.v1.OperatorService/DrainMachine":        writes,
		"/imagectl.v1.OperatorService/ListCertificates":    reads,
		"/imagectl.v1.OperatorService/RevokeCertificates":  {"nobody": who, "node": no, "admin": yes, "operator": no, "reader": no, "backup": no},
		"/imagectl.v1.OperatorService/BackupServer":        {"nobody": who, "node": no, "admin": yes, "operator": no, "reader": no, "backup": yes},
		"/imagectl.v1.OperatorService/ReadAudit":           reads,
		"/imagectl.v1.OperatorService/ListOperators":       reads,
		"/imagectl.v1.OperatorService/ShowAuthority":       reads,
		"/imagectl.v1.OperatorService/RollAuthority":       admins,
		"/imagectl.v1.OperatorService/RotateAuthority":     admins,
		"/imagectl.v1.OperatorService/ShowEncryption":      reads,
		"/imagectl.v1.OperatorService/RotateEncryption":    admins,
		"/imagectl.v1.OperatorService/AddOperator":         admins,
		"/imagectl.v1.OperatorService/RevokeOperators":     admins,
		"/imagectl.v1.OperatorService/ListRequests":        reads,
		"/imagectl.v1.OperatorService/ApproveRequest":      writes,
		"/imagectl.v1.OperatorService/IssueKubeconfig":     {"nobody": who, "node": no, "admin": yes, "operator": no, "reader": no, "backup": no},
	}
}

// Every call × every kind of caller.
func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	// A control plane, so that what it may not do is a matter of its kind alone.
	node := r.approvedMachine("cp1", "52:54:00:00:00:01")
	foreign, err := pki.NewCA("imagectl demo", 24*time.Hour, 0, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	callers := map[string]*tls.Certificate{"nobody": nil, "node": node.cert}
	for _, role := range pki.Roles() {
		callers[string(role)] = signed(t, r.signer(), role)
	}
	callers["stranger"] = signed(t, foreign, pki.RoleAdmin)

	const who, no, cut = "unauthenticated", "permission_denied", "no connection"
	want, all := whoMay(), procedures()
	if len(all) != len(want) {
		t.Errorf("the contract has %d calls, the test knows %d: %v", len(all), len(want), all)
	}
	for name, cert := range callers {
		client := r.client(cert)
		for _, p := range all {
			expected := want[p][name]
			if name == "stranger" {
				expected = cut
			}
			if got := try(t, client, r.url, p); got != expected {
				t.Errorf("%s calls %s: got %s, want %s", name, p, got, expected)
			}
		}
		expected := map[string]string{"nobody": who, "stranger": cut}[name]
		if expected == "" {
			expected = no
		}
		if got := try(t, client, r.url, "/imagectl.v1.OperatorService/Future"); got != expected {
			t.Errorf("%s calls what is not in the table: got %s, want %s", name, got, expected)
		}
	}
}

func signed(t *testing.T, ca *pki.CA, role pki.Role) *tls.Certificate {
	t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := pki.OwnKey(key)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := pki.Operator("demo", "ada", role, pki.Lifetimes{})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Sign(profile, public, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{issued.Certificate.Raw}, PrivateKey: key}
}

func TestRetiredMachinesAreRefused(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	f.sync(installer())
	if err := r.store.Change(t.Context(), func(tx *store.Tx) error {
		m, _, err := tx.Machine("w1")
		if err != nil {
			return err
		}
		m.State = machine.Retired
		return tx.PutMachine(m)
	}); err != nil {
		t.Fatal(err)
	}
	_, err := f.agent().Sync(t.Context(), connect.NewRequest(installer()))
	if connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "machine w1 was retired") {
		t.Errorf("got %v", err)
	}
	if got := f.enrol(); got.GetReasonCode() != "enrol-retired" {
		t.Errorf("got %v", got)
	}
}

func TestPlainAndOldTLSAreRefused(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	c := r.client(nil)
	tr, ok := c.Transport.(*http.Transport)
	if !ok {
		t.Fatal("no transport")
	}
	tr.TLSClientConfig.MinVersion, tr.TLSClientConfig.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if got := try(t, c, r.url, apiconnect.EnrolServiceEnrolProcedure); got != "no connection" {
		t.Errorf("TLS 1.2: got %s", got)
	}
}
