package kubeadm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

func TestCredentialsOfAKubeconfig(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	cert64, key64 := base64.StdEncoding.EncodeToString(certPEM), base64.StdEncoding.EncodeToString(keyPEM)
	read := func(name string) ([]byte, error) {
		if name == "/pki/current.pem" {
			return append(certPEM, keyPEM...), nil
		}
		return nil, errors.New(name + " is missing")
	}
	conf := func(cluster, user string) string {
		return fmt.Sprintf("clusters: [{cluster: {%s}}]\nusers: [{user: {%s}}]\n", cluster, user)
	}
	good := "server: 'https://127.0.0.1:7443', certificate-authority-data: " + cert64
	for name, tc := range map[string]struct{ conf, want string }{
		"embedded":       {conf(good, "client-certificate-data: "+cert64+", client-key-data: "+key64), ""},
		"a file":         {conf(good, "client-certificate: /pki/current.pem, client-key: /pki/current.pem"), ""},
		"file missing":   {conf(good, "client-certificate: /pki/old.pem, client-key: /pki/current.pem"), "reading a kubeconfig's client certificate: /pki/old.pem is missing"},
		"a token":        {conf(good, "token: abc"), "reading a kubeconfig's client certificate: there is none"},
		"no CA":          {conf("server: 'https://a'", "client-certificate: /pki/current.pem, client-key: /pki/current.pem"), "reading a kubeconfig's CA: there is none"},
		"CA is no PEM":   {conf("server: 'https://a', certificate-authority-data: eA==", "client-certificate: /pki/current.pem, client-key: /pki/current.pem"), "reading a kubeconfig's CA: there is no PEM certificate in it"},
		"nothing":        {"", "reading a kubeconfig: it has not one cluster with a server and one user"},
		"data is no b64": {conf("server: 'https://a', certificate-authority-data: '%'", ""), "reading a kubeconfig's CA: illegal base64 data at input byte 0"},
	} {
		server, credentials, err := kubeadm.Credentials([]byte(tc.conf), read)
		if tc.want != "" {
			if err == nil || err.Error() != tc.want {
				t.Errorf("%s: got %v, want %s", name, err, tc.want)
			}
			continue
		}
		if err != nil || server != "https://127.0.0.1:7443" || len(credentials.Certificates) != 1 || credentials.Certificates[0].Leaf.SerialNumber.Int64() != 7 {
			t.Errorf("%s: got %q, %v, %v", name, server, credentials, err)
		}
	}
}
