package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// serverContext is one of the context file: whom client verbs call for a cluster, and as whom.
type serverContext struct {
	Cluster string `json:"cluster"`
	// Server is an https URL.
	Server string `json:"server"`
	// Servers are those of all servers of the cluster, this one first; it may be missing.
	Servers []string `json:"servers,omitempty"`
	// CA, Certificate and Key are PEM. CA may be more than one; Former are those that are not
	// trusted any more, to check what they have signed.
	CA          string `json:"ca"`
	Former      string `json:"former,omitempty"`
	Certificate string `json:"certificate"`
	Key         string `json:"key,omitempty"`
	// KeyFile is where a person's own key lies instead of Key; the certificate is then
	// renewed by itself.
	KeyFile string `json:"keyFile,omitempty"`
}

// contextPath is where the context file lies.
func contextPath() (string, error) {
	if p := os.Getenv("IMAGECTL_CONFIG"); p != "" {
		return p, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("finding the context file: %w; say where it is in IMAGECTL_CONFIG", err)
	}
	return filepath.Join(dir, "imagectl", "context.json"), nil
}

// writePrivate writes a file with a private key in it.
func writePrivate(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// remote is a context that is ready for calls.
type remote struct {
	serverContext
	// roots are the CAs to trust, as they were when the context was read; former signed once.
	roots, former []*x509.Certificate

	mu   sync.Mutex
	cert tls.Certificate
}

// openContext reads the context, whose certificate may have expired.
func (g *globals) openContext() (*remote, error) {
	c, err := g.readContext()
	if err != nil {
		return nil, err
	}
	r := &remote{serverContext: c}
	if r.roots, err = pki.ParseCertificatesPEM([]byte(c.CA)); err != nil {
		return nil, fmt.Errorf("reading context: its ca: %w", err)
	} else if len(r.roots) == 0 {
		return nil, errors.New("reading context: its ca holds no certificate")
	}
	if r.former, err = pki.ParseCertificatesPEM([]byte(c.Former)); err != nil {
		return nil, fmt.Errorf("reading context: its former ca: %w", err)
	}
	key := []byte(c.Key)
	if c.KeyFile != "" {
		if key, err = os.ReadFile(c.KeyFile); err != nil {
			return nil, fmt.Errorf("reading the operator's key: %w", err)
		}
	}
	if r.cert, err = tls.X509KeyPair([]byte(c.Certificate), key); err != nil {
		return nil, fmt.Errorf("reading context: %w", err)
	}
	return r, nil
}

// dial checks the context. Where there are several servers, they are asked which of them
// coordinates; else nothing is sent yet.
func (g *globals) dial() (*remote, error) {
	r, err := g.openContext()
	if err != nil {
		return nil, err
	}
	if end := r.cert.Leaf.NotAfter; time.Now().After(end) && r.KeyFile == "" {
		return nil, fmt.Errorf("the operator certificate in the context file expired at %s: imagectl serve keeps the file on its machine fresh; start it there, or copy the file again", end.Local().Format(time.DateTime))
	}
	if len(r.Servers) > 1 {
		r.Server = r.coordinator()
	}
	return r, nil
}

// choosing is how long the servers are asked which of them coordinates.
const choosing = 5 * time.Second

// coordinator is the server that answers operators. When none says that it does, the
// call goes to the first, whose error is then shown.
func (r *remote) coordinator() string {
	ctx, cancel := context.WithTimeout(context.Background(), choosing)
	defer cancel()
	client, answers := r.nobody(), make(chan string, len(r.Servers))
	defer client.CloseIdleConnections()
	for _, url := range r.Servers {
		go func() {
			if !coordinates(ctx, client, url) {
				url = ""
			}
			answers <- url
		}()
	}
	for range r.Servers {
		if url := <-answers; url != "" {
			return url
		}
	}
	return r.Server
}

// nobody is client without a certificate, which may be due.
func (r *remote) nobody() *http.Client {
	client := r.client("")
	client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = nil
	return client
}

func coordinates(ctx context.Context, client *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+serverapi.CoordinatesPath, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// operator calls the server.
func (r *remote) operator() apiconnect.OperatorServiceClient {
	return apiconnect.NewOperatorServiceClient(r.client(""), r.Server)
}

// node calls a node's own API at an address; the certificate must be that
// machine's whatever the address is.
func (r *remote) node(name, address string) apiconnect.NodeServiceClient {
	return apiconnect.NewNodeServiceClient(r.client(name), "https://"+address)
}

// client speaks TLS 1.3 as the operator. With a node's name, the other side must
// be that node.
func (r *remote) client(node string) *http.Client {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: node,
		// VerifyConnection does it: a context file from before a rollover of the CA knows the
		// old one only, and crypto/tls does not build the chain from there.
		InsecureSkipVerify:   true,
		GetClientCertificate: func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) { return r.certificate(i.Context()) },
		VerifyConnection: func(s tls.ConnectionState) error {
			// A server is known by its identity, whatever it is called by; so do agents.
			if err := pki.Verify(r.roots, s.PeerCertificates, node, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
				return err
			}
			id, err := pki.IdentityOf(s.PeerCertificates[0], r.Cluster)
			if err != nil {
				return err
			}
			if want := (pki.Identity{Cluster: r.Cluster, Kind: pki.KindNode, Name: node}); node != "" && id != want {
				return fmt.Errorf("it is %s, want %s", id, want)
			}
			if node == "" && id.Kind != pki.KindServer {
				return fmt.Errorf("it is %s, not the server", id)
			}
			return nil
		},
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second}}
}

// signers are all CAs that may have signed what nodes keep.
func (r *remote) signers() []*x509.Certificate { return slices.Concat(r.roots, r.former) }

// explain turns the error of a call into what to do about it.
func (r *remote) explain(err error) error {
	if err == nil {
		return nil
	}
	var refused *renewalError
	if errors.As(err, &refused) {
		return refused
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	host := r.Server
	if u, err := url.Parse(r.Server); err == nil {
		host = u.Host
	}
	var op *net.OpError
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case connect.IsWireError(err):
		if c := ce.Code(); c == connect.CodeUnauthenticated || c == connect.CodePermissionDenied {
			return fmt.Errorf("the server refuses: %s", ce.Message())
		}
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("no imagectl serve answers at %s (%s); is it running, and is this machine on its network?", host, ce.Message())
	case op != nil || ce.Code() == connect.CodeUnavailable:
		// TLS 1.3 lets a client learn late and in many words that it was turned away.
		return fmt.Errorf("the server at %s and this context file do not trust each other (%s); copy the file from the server again", host, ce.Message())
	}
	return errors.New(ce.Message())
}
