package kubeadm

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"

	"sigs.k8s.io/yaml"
)

// kubeconfig is what of client-go's api/v1.Config kubeadm and kubelet write: one
// cluster, one user, either with the bytes in it or with the file they are in.
type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			Server string `json:"server"`
			CA     string `json:"certificate-authority"`
			CAData string `json:"certificate-authority-data"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			Certificate     string `json:"client-certificate"`
			CertificateData string `json:"client-certificate-data"`
			Key             string `json:"client-key"`
			KeyData         string `json:"client-key-data"`
		} `json:"user"`
	} `json:"users"`
}

// Credentials returns the API server's URL out of a kubeconfig and what to show
// and demand there. read reads the files that it names.
func Credentials(conf []byte, read func(name string) ([]byte, error)) (server string, _ *tls.Config, err error) {
	var c kubeconfig
	if err := yaml.Unmarshal(conf, &c); err != nil {
		return "", nil, fmt.Errorf("reading a kubeconfig: %w", err)
	}
	if len(c.Clusters) != 1 || len(c.Users) != 1 || c.Clusters[0].Cluster.Server == "" {
		return "", nil, errors.New("reading a kubeconfig: it has not one cluster with a server and one user")
	}
	cluster, user := c.Clusters[0].Cluster, c.Users[0].User
	load := func(what, data, file string) []byte {
		var b []byte
		var e error
		switch {
		case err != nil:
		case data != "":
			b, e = base64.StdEncoding.DecodeString(data)
		case file != "":
			b, e = read(file)
		default:
			e = errors.New("there is none")
		}
		if e != nil {
			err = fmt.Errorf("reading a kubeconfig's %s: %w", what, e)
		}
		return b
	}
	ca := load("CA", cluster.CAData, cluster.CA)
	certificate := load("client certificate", user.CertificateData, user.Certificate)
	key := load("client key", user.KeyData, user.Key)
	if err != nil {
		return "", nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return "", nil, fmt.Errorf("reading a kubeconfig's client certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return "", nil, errors.New("reading a kubeconfig's CA: there is no PEM certificate in it")
	}
	return cluster.Server, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair}}, nil
}

// Server is where who lives on a control plane at this address finds its own API server.
func Server(address netip.Addr) string {
	return "https://" + netip.AddrPortFrom(address, BindPort).String()
}

// DiscoveryConfig is a kubeconfig with embedded credentials for file discovery.
// All arguments are PEM; it is a secret.
func DiscoveryConfig(ca, certificate, key []byte) ([]byte, error) {
	return Kubeconfig("https://"+Endpoint, "node", ca, certificate, key)
}

// Kubeconfig is one with embedded credentials. ca, certificate and key are PEM; it is a
// secret.
func Kubeconfig(server, user string, ca, certificate, key []byte) ([]byte, error) {
	return marshal(server, user, ca, map[string]any{"client-certificate-data": base64.StdEncoding.EncodeToString(certificate), "client-key-data": base64.StdEncoding.EncodeToString(key)})
}

// KubeletKubeconfig is kubelet's, which names the file of its credentials: KubeletClient.
func KubeletKubeconfig(server string, ca []byte) ([]byte, error) {
	return marshal(server, "node", ca, map[string]any{"client-certificate": KubeletClient, "client-key": KubeletClient})
}

func marshal(server, user string, ca []byte, credentials map[string]any) ([]byte, error) {
	type named map[string]any
	b, err := yaml.Marshal(named{
		"apiVersion": "v1", "kind": "Config", "current-context": "cluster",
		"clusters": []named{{"name": "cluster", "cluster": named{"server": server, "certificate-authority-data": base64.StdEncoding.EncodeToString(ca)}}},
		"users":    []named{{"name": user, "user": credentials}},
		"contexts": []named{{"name": "cluster", "context": named{"cluster": "cluster", "user": user}}},
	})
	if err != nil {
		return nil, fmt.Errorf("writing a kubeconfig for %s: %w", user, err)
	}
	return b, nil
}
