package cli

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/pin"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// trusting carries the requests of a destination to servers that it trusts: by the
// system's authorities, by those of option ca alone, or the endpoint by option
// fingerprint. It is safe for concurrent use.
type trusting struct {
	*pin.Transport
	// hint is what to do about a certificate that is not trusted; empty for nothing.
	hint string
	// wanders says that answers may send the client elsewhere. A store and a registry do
	// so, with what is signed for one request; who has a password in a body or a token in
	// a header must not take it there.
	wanders bool
}

// RoundTrip implements http.RoundTripper.
func (t trusting) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(r)
	var bad *tls.CertificateVerificationError
	if t.hint != "" && errors.As(err, &bad) && len(bad.UnverifiedCertificates) > 0 {
		return nil, fmt.Errorf("%w; the certificate that %s shows has the fingerprint %X: %s", err, r.URL.Host, sha256.Sum256(bad.UnverifiedCertificates[0].Raw), t.hint)
	}
	if err == nil && !t.wanders {
		if to := elsewhere(r, resp); to != "" {
			resp.Body.Close()
			return nil, fmt.Errorf("%w: %w: %s://%s answers %s and sends us to %s, where neither password nor token is taken: if it has moved there, make that the endpoint", upload.ErrServer, pin.ErrElsewhere, r.URL.Scheme, r.URL.Host, resp.Status, to)
		}
	}
	return resp, err
}

// elsewhere is the server that an answer sends a client to; empty if it is the same, or
// none.
func elsewhere(r *http.Request, resp *http.Response) string {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return ""
	}
	at := resp.Header.Get("Location")
	if at == "" {
		// Google's storage says so that there is more to send.
		return ""
	}
	to, err := r.URL.Parse(at)
	if err != nil {
		return "a place that is no URL"
	}
	if to.Scheme == r.URL.Scheme && strings.EqualFold(to.Host, r.URL.Host) {
		return ""
	}
	return to.Scheme + "://" + to.Host
}

// trustHint says what a type has for servers with certificates of their own.
func trustHint(kind string) string {
	switch kind {
	case "aws", "azure", "gcp":
		return "option ca names the authorities of an endpoint of your own"
	case "digitalocean", "hetzner":
		return ""
	}
	return "if that is the server's own, set option fingerprint to it, or option ca to its authority"
}

// uploadClient is a client that trusts what the destination says.
func (g *globals) uploadClient(d destination) (*http.Client, error) {
	t, err := g.uploadTransport(d)
	if err != nil {
		return nil, err
	}
	trust, err := d.trusting(t, d.Endpoint)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: trust}, nil
}

// pinnedTransport is for what speaks no HTTP/2.
func (g *globals) pinnedTransport(d destination) (trusting, error) {
	base, err := g.uploadTransport(d)
	if err != nil {
		return trusting{}, err
	}
	// govmomi keeps HTTP/2 off with vCenter, and pveproxy has none.
	base.ForceAttemptHTTP2 = false
	return d.trusting(base, d.Endpoint)
}

// trusting pins the server of an endpoint, if option fingerprint says so.
func (d destination) trusting(base *http.Transport, endpoint string) (trusting, error) {
	t := trusting{Transport: pin.New(base), hint: trustHint(d.Type), wanders: d.Type == "s3" || d.Type == "oci"}
	text := d.Options["fingerprint"]
	if text == "" {
		return t, nil
	}
	digest, err := pin.Parse(text)
	if err != nil {
		return t, badDestination(d, err)
	}
	u, err := url.Parse(endpoint)
	if err == nil && u.Scheme != "https" {
		// It would be compared with nothing.
		err = fmt.Errorf("option fingerprint wants an https endpoint, and it is %q", u.Redacted())
	}
	if err != nil {
		return t, badDestination(d, err)
	}
	if d.Type == "openstack" {
		// Keystone and the image service have a port each, behind one certificate.
		t.PinAll(u.Hostname(), digest)
	} else {
		t.Pin(u.Host, digest)
	}
	return t, nil
}

// uploadTransport trusts the system's authorities, or those of option ca alone.
func (g *globals) uploadTransport(d destination) (*http.Transport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if path := d.Options["ca"]; path != "" {
		b, err := os.ReadFile(g.inDir(path))
		if err != nil {
			return nil, usageError{fmt.Errorf("upload target %s: reading option ca: %w", d.Name, err)}
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(b) {
			return nil, usageError{fmt.Errorf("upload target %s: option ca: %s holds no certificate in PEM form", d.Name, path)}
		}
	}
	return rest.NewTransport(conf, d.watch), nil
}
