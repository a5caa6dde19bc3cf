package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// cfsslKey is the secret that all of cfssl's clients share.
const cfsslKey = "0123456789abcdef0123456789abcdef"

// The table of cfssl 1.6.5 (certdb/sqlite/migrations), which goose would make.
const cfsslTables = `CREATE TABLE certificates (serial_number blob NOT NULL, authority_key_identifier blob NOT NULL, ca_label blob, status blob NOT NULL,
 reason int, expiry timestamp, revoked_at timestamp, pem blob NOT NULL, issued_at timestamp, not_before timestamp, metadata blob, sans blob, common_name text,
 PRIMARY KEY(serial_number, authority_key_identifier));`

// withCFSSL asks cfssl, which signs for whoever knows its secret and keeps what it
// signed in SQLite, on the disk.
func (b *bench) withCFSSL(ctx context.Context) error {
	if b.cfssl == "" {
		fmt.Printf("%-44s its program is not there: not compared\n", "peer: cfssl")
		return nil
	}
	agents, err := newAgents(b.agents)
	if err != nil {
		return err
	}
	c, err := b.startCFSSL(ctx)
	if err != nil {
		return err
	}
	roots, _, err := readCA(c.dir)
	if err != nil {
		return err
	}
	secret, err := hex.DecodeString(cfsslKey)
	if err != nil {
		return err
	}
	got, err := all(ctx, agents, func(ctx context.Context, a *simulated) error {
		csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: a.csr})
		request, err := json.Marshal(map[string]any{"certificate_request": string(csr), "subject": map[string]any{"CN": a.name}})
		if err != nil {
			return err
		}
		mac := hmac.New(sha256.New, secret)
		mac.Write(request)
		body, err := json.Marshal(map[string]string{"token": base64.StdEncoding.EncodeToString(mac.Sum(nil)), "request": base64.StdEncoding.EncodeToString(request)})
		if err != nil {
			return err
		}
		answer, err := a.post(ctx, roots, c.url+"/api/v1/cfssl/authsign", body)
		if err != nil {
			return err
		}
		var signed struct {
			Result struct {
				Certificate string `json:"certificate"`
			} `json:"result"`
		}
		if err := json.Unmarshal(answer, &signed); err != nil {
			return fmt.Errorf("cfssl says %s: %w", answer, err)
		}
		return a.take([]byte(signed.Result.Certificate), roots, time.Now())
	})
	if err != nil {
		return err
	}
	used, err := c.spent()
	if err != nil {
		return err
	}
	b.print("peer: cfssl with SQLite", got, used, "")
	return c.kill()
}

func (b *bench) startCFSSL(ctx context.Context) (*child, error) {
	dir := filepath.Join(b.dir, "cfssl")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	ca, own, err := authority(dir)
	if err != nil {
		return nil, err
	}
	caKey, err1 := ca.KeyPEM()
	ownKey, err2 := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string][]byte{
		"ca-key.pem":  caKey,
		"tls.pem":     pki.EncodeCertificate(own.Certificate[0]),
		"tls-key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: ownKey}),
		"config.json": []byte(`{"signing": {"default": {"auth_key": "k", "expiry": "720h", "usages": ["digital signature", "client auth"]}},
 "auth_keys": {"k": {"type": "standard", "key": "` + cfsslKey + `"}}}`),
		// Without a time-out SQLite refuses whoever comes while another one writes.
		"db.json": []byte(`{"driver": "sqlite3", "data_source": "file:` + path("db") + `?_busy_timeout=120000"}`),
	} {
		if err := os.WriteFile(path(name), content, 0o600); err != nil {
			return nil, err
		}
	}
	if out, err := exec.CommandContext(ctx, "sqlite3", path("db"), cfsslTables).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("sqlite3: %w: %s", err, out)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		return nil, err
	}
	c := &child{dir: dir, url: "https://127.0.0.1:" + port}
	c.cmd = exec.CommandContext(ctx, b.cfssl, "serve", "-loglevel", "3", "-address", "127.0.0.1", "-port", port, "-ca", path(caFile), "-ca-key", path("ca-key.pem"),
		"-config", path("config.json"), "-db-config", path("db.json"), "-tls-cert", path("tls.pem"), "-tls-key", path("tls-key.pem"))
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	for range 600 {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+port)
		if err == nil {
			return c, conn.Close()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil, errors.New("cfssl does not listen")
}
