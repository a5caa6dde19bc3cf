package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// authority is a CA and a certificate of a server, for the peers.
func authority(dir string) (*pki.CA, tls.Certificate, error) {
	l := pki.Lifetimes{}.WithDefaults()
	now := time.Now()
	ca, err := pki.NewCA("plain", l.CA, l.Backdate, now, rand.Reader)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	profile, err := pki.Server("bench", nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, l)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	public, err := pki.OwnKey(key)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	issued, err := ca.Sign(profile, public, now, rand.Reader)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	return ca, tls.Certificate{Certificate: [][]byte{issued.Certificate.Raw}, PrivateKey: key, Leaf: issued.Certificate},
		os.WriteFile(filepath.Join(dir, caFile), ca.CertificatePEM(), 0o600)
}

// servePlain is the least that enrols a machine: it checks a request, signs it, and
// puts the certificate into an etcd that waits for the disk. It asks nobody who may
// have one, and logs nothing.
func servePlain(ctx context.Context, dir string) error {
	ca, own, err := authority(dir)
	if err != nil {
		return err
	}
	text, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	signer, err := pki.ParseKeyPEM(text)
	if err != nil {
		return err
	}
	conf := embed.NewConfig()
	conf.Dir = filepath.Join(dir, "etcd")
	nowhere := []url.URL{{Scheme: "unix", Path: conf.Dir}}
	conf.ListenClientUrls, conf.AdvertiseClientUrls = nil, nowhere
	conf.ListenPeerUrls, conf.AdvertisePeerUrls = nil, nowhere
	conf.InitialCluster = conf.Name + "=" + nowhere[0].String()
	conf.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	etcd, err := embed.StartEtcd(conf)
	if err != nil {
		return err
	}
	defer etcd.Close()
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		return err
	}
	client := v3client.New(etcd.Server)
	defer client.Close()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return untilInputEnds(ctx, l, func(ctx context.Context, l net.Listener) error {
		srv := &http.Server{ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				cert, err := signPlain(r, ca.Certificate(), signer, client)
				if err != nil {
					http.Error(w, err.Error(), http.StatusInternalServerError)
					return
				}
				_, _ = w.Write(cert)
			})}
		go func() {
			<-ctx.Done()
			srv.Close()
		}()
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

func signPlain(r *http.Request, ca *x509.Certificate, signer any, etcd *clientv3.Client) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(body)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	name := r.URL.Query().Get("name")
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, csr.PublicKey.(*ecdsa.PublicKey), signer)
	if err != nil {
		return nil, err
	}
	cert := pki.EncodeCertificate(der)
	_, err = etcd.Put(r.Context(), "certificates/"+name, string(cert))
	return cert, err
}

func (b *bench) plain(ctx context.Context) error {
	agents, err := newAgents(b.agents)
	if err != nil {
		return err
	}
	c, err := start(ctx, filepath.Join(b.dir, "plain"), "-serve", "plain")
	if err != nil {
		return err
	}
	roots, _, err := readCA(c.dir)
	if err != nil {
		return err
	}
	got, err := all(ctx, agents, func(ctx context.Context, a *simulated) error {
		cert, err := a.post(ctx, roots, c.url+"/?name="+a.name, a.csr)
		if err != nil {
			return err
		}
		return a.take(cert, roots, time.Now())
	})
	if err != nil {
		return err
	}
	used, err := c.spent()
	if err != nil {
		return err
	}
	b.print("peer: sign a request and put it into etcd", got, used, "")
	return c.end()
}

// post sends a body over the agent's own connection.
func (a *simulated) post(ctx context.Context, roots *x509.CertPool, to string, body []byte) ([]byte, error) {
	client, done := a.client(roots)
	defer done()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", to, resp.Status, out)
	}
	return out, err
}
