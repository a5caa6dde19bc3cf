// Package nodeconf is the file that Ignition or the installer leaves for
// bootstrapd at Path. It is public: it names the server and the CA to trust. Only
// for a virtual machine that a platform makes, it may hold a token, which is a secret
// for minutes.
package nodeconf

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
)

// Path is where the file lies on a node.
const Path = "/etc/imagectl/node.json"

// Mode says which system the agent runs in.
type Mode string

// The modes.
const (
	// Installer: netbooted into memory; may write a disk when the server says so.
	Installer Mode = "installer"
	// Node: running from its own disk.
	Node Mode = "node"
)

// Config is the content of the file.
type Config struct {
	// Cluster is the cluster's name.
	Cluster string `json:"cluster"`
	// Mode is Installer or Node.
	Mode Mode `json:"mode"`
	// Servers are https URLs with host and port, tried in order.
	Servers []string `json:"servers"`
	// CA is one or more PEM certificates that server certificates chain to.
	CA string `json:"ca"`
	// Machine is a hint for logs before enrolment; it may be empty. Nothing is
	// granted on it.
	Machine string `json:"machine,omitempty"`
	// TPM says that the machine makes its key in its TPM and proves itself by it.
	TPM bool `json:"tpm,omitempty"`
	// Token is a single-use secret that was given to this one machine, out of band;
	// often empty. With it the file is a secret until the machine is enrolled.
	Token string `json:"token,omitempty"`
}

// Encode writes a checked Config as indented JSON with a final newline.
func (c Config) Encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("encoding node configuration: %w", err)
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding node configuration: %w", err)
	}
	return append(b, '\n'), nil
}

// Parse reads a file written by Encode. Unknown keys are errors.
func Parse(b []byte) (Config, error) {
	var c Config
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("parsing node configuration: %w", err)
	}
	if d.More() {
		return Config{}, errors.New("parsing node configuration: there is more than one JSON value")
	}
	if err := c.check(); err != nil {
		return Config{}, fmt.Errorf("parsing node configuration: %w", err)
	}
	return c, nil
}

func (c Config) check() error {
	if c.Cluster == "" {
		return errors.New("cluster is empty")
	}
	if c.Mode != Installer && c.Mode != Node {
		return fmt.Errorf("mode is %q, want %q or %q", c.Mode, Installer, Node)
	}
	if c.Token != "" && c.Mode != Node {
		return errors.New("a token is for a machine that its platform tells of its server; an installer fetches this file over plain HTTP")
	}
	if len(c.Servers) == 0 {
		return errors.New("servers is empty: the agent would have nobody to call")
	}
	for _, s := range c.Servers {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") {
			return fmt.Errorf("server %q is not an https URL with only a host and a port", s)
		}
	}
	_, err := c.Roots()
	return err
}

// Roots returns the certificates in CA; it fails if there is none.
func (c Config) Roots() ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := []byte(c.CA); ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("ca holds a PEM block of type %q; only CERTIFICATE may be there", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, errors.New("ca holds no PEM certificate")
	}
	return out, nil
}
