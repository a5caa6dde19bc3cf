package store

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
)

// locationFile is where a state directory says that its state is on an etcd cluster.
// Where it is missing, the state is in dataDir.
const locationFile = "etcd.json"

// Location is an etcd cluster, and as whom it is called. Paths are absolute.
type Location struct {
	// Endpoints are https URLs of members.
	Endpoints []string `json:"endpoints"`
	// CA is what the members' certificates chain to; Certificate and Key are the
	// client's. All are files in PEM; the last two are read again for every connection.
	CA          string `json:"ca"`
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

// ReadLocation says on which etcd cluster a state directory's state is; nil when it is
// in the directory itself.
func ReadLocation(dir string) (*Location, error) {
	path := filepath.Join(dir, locationFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l := &Location{}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return l, nil
}

// write makes the location count. It is there completely or not at all.
func (l Location) write(dir string) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, locationFile), append(b, '\n'))
}

func (l Location) check() error {
	if len(l.Endpoints) == 0 {
		return errors.New("it names no endpoint; want https://HOST:2379")
	}
	for _, e := range l.Endpoints {
		if u, err := url.Parse(e); err != nil || u.Scheme != "https" || u.Port() == "" {
			return fmt.Errorf("endpoint %q: want https://HOST:2379; the private keys of the cluster pass there, so it must be mutual TLS", e)
		}
	}
	for name, path := range map[string]string{"CA": l.CA, "certificate": l.Certificate, "key": l.Key} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("the %s %q is no absolute path", name, path)
		}
	}
	return nil
}

// tls is mutual. The files are read once now, so that what is wrong with them is said
// in plain words.
func (l Location) tls() (*tls.Config, error) {
	pem, err := os.ReadFile(l.CA)
	if err != nil {
		return nil, fmt.Errorf("reading the CA of etcd: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading the CA of etcd: %s holds no certificate in PEM", l.CA)
	}
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(l.Certificate, l.Key)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate for etcd: %w", err)
		}
		return &c, nil
	}
	if _, err := load(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, GetClientCertificate: load}, nil
}
