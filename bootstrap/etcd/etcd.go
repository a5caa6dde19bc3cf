// Package etcd is what a control plane's etcd member is told: one static
// configuration file, and where its files lie; and how a machine becomes a member.
// Whose turn that is the server decides; what is to be done then, Next decides from
// the list of members itself.
//
// Peers and clients use mutual TLS 1.3, keys are made on the node, and the key
// of etcd's CA never comes here.
package etcd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"sigs.k8s.io/yaml"
)

// Where things lie on a node. A certificate and its key are one file, so that
// both change in one rename; Go's TLS and with it etcd and kube-apiserver take
// the blocks they need from it.
const (
	ConfigPath = "/etc/etcd/etcd.yaml"
	DataDir    = "/var/lib/etcd"
	CAPath     = "/etc/etcd/pki/ca.crt"
	ServerPath = "/etc/etcd/pki/server.pem"
	PeerPath   = "/etc/etcd/pki/peer.pem"
	ClientPath = "/etc/etcd/pki/agent.pem"
	// CRLPath is what its CA has revoked (DER), which etcd reads at each handshake.
	CRLPath = "/etc/etcd/pki/ca.crl"
	Unit    = "etcd.service"
	// ClientPort and PeerPort are where members listen on their addresses.
	ClientPort = "2379"
	PeerPort   = "2380"
	// LocalEndpoint is for clients on the node itself.
	LocalEndpoint = "https://127.0.0.1:2379"
)

// Member is one member's configuration.
type Member struct {
	// Name is the machine's name.
	Name string
	// Address is where other members reach it.
	Address netip.Addr
	// InitialCluster is NAME=https://ADDRESS:2380,… and must hold this member.
	// etcd reads it only while its data directory is empty.
	InitialCluster string
	// Token keeps members of different clusters apart.
	Token string
	// Bootstrap: this is the first member of a new cluster; otherwise it has been
	// added to one.
	Bootstrap bool
	// ForceNew: it starts with its own data as the only member, and forgets all others. Each
	// start does it again, so a file that says this must not stay.
	ForceNew bool
	// Timing is how it keeps time.
	Timing Timing
}

// file is etcd's configuration file (etcd 3.6, server/embed/config.go).
type file struct {
	Name                     string    `json:"name"`
	DataDir                  string    `json:"data-dir"`
	ListenPeerURLs           string    `json:"listen-peer-urls"`
	ListenClientURLs         string    `json:"listen-client-urls"`
	InitialAdvertisePeerURLs string    `json:"initial-advertise-peer-urls"`
	AdvertiseClientURLs      string    `json:"advertise-client-urls"`
	InitialCluster           string    `json:"initial-cluster"`
	InitialClusterState      string    `json:"initial-cluster-state"`
	InitialClusterToken      string    `json:"initial-cluster-token"`
	ForceNewCluster          bool      `json:"force-new-cluster,omitempty"`
	StrictReconfigCheck      bool      `json:"strict-reconfig-check"`
	ClientTransportSecurity  transport `json:"client-transport-security"`
	PeerTransportSecurity    transport `json:"peer-transport-security"`
	ClientTLSInfo            tlsInfo   `json:"ClientTLSInfo"`
	PeerTLSInfo              tlsInfo   `json:"PeerTLSInfo"`
	TLSMinVersion            string    `json:"tls-min-version"`
	AutoCompactionMode       string    `json:"auto-compaction-mode"`
	AutoCompactionRetention  string    `json:"auto-compaction-retention"`
	QuotaBackendBytes        int64     `json:"quota-backend-bytes"`
	HeartbeatInterval        int64     `json:"heartbeat-interval,omitempty"` // in milliseconds, as is the next
	ElectionTimeout          int64     `json:"election-timeout,omitempty"`
	FeatureGates             string    `json:"feature-gates"`
	LogLevel                 string    `json:"log-level"`
	Logger                   string    `json:"logger"`
}

type transport struct {
	CertFile       string `json:"cert-file"`
	KeyFile        string `json:"key-file"`
	ClientCertAuth bool   `json:"client-cert-auth"`
	TrustedCAFile  string `json:"trusted-ca-file"`
}

// tlsInfo reaches what etcd has a flag for (--client-crl-file, --peer-crl-file) and no
// key of its configuration file, with which flags are ignored: the file is read into
// a struct that has this field too, by its Go name. A test asks etcd itself.
type tlsInfo struct {
	CRLFile string `json:"CRLFile"`
}

// Config writes etcd's configuration file. Nothing listens but the two ports
// with mutual TLS; metrics are served on the client port to clients with a
// certificate.
func (m Member) Config() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("configuring etcd member %q: %w", m.Name, err)
	}
	state := "existing"
	if m.Bootstrap {
		state = "new"
	}
	f := file{
		Name: m.Name, DataDir: DataDir,
		ListenPeerURLs:           m.url(PeerPort),
		ListenClientURLs:         m.url(ClientPort) + "," + LocalEndpoint,
		InitialAdvertisePeerURLs: m.url(PeerPort),
		AdvertiseClientURLs:      m.url(ClientPort),
		InitialCluster:           m.InitialCluster,
		InitialClusterState:      state,
		InitialClusterToken:      m.Token,
		ForceNewCluster:          m.ForceNew,
		StrictReconfigCheck:      true,
		ClientTransportSecurity:  transport{CertFile: ServerPath, KeyFile: ServerPath, ClientCertAuth: true, TrustedCAFile: CAPath},
		PeerTransportSecurity:    transport{CertFile: PeerPath, KeyFile: PeerPath, ClientCertAuth: true, TrustedCAFile: CAPath},
		ClientTLSInfo:            tlsInfo{CRLPath},
		PeerTLSInfo:              tlsInfo{CRLPath},
		TLSMinVersion:            "TLS1.3",
		// kube-apiserver compacts every five minutes; this is for what it forgets.
		AutoCompactionMode:      "periodic",
		AutoCompactionRetention: "8h",
		QuotaBackendBytes:       QuotaBytes,
		HeartbeatInterval:       m.Timing.Heartbeat.Milliseconds(),
		ElectionTimeout:         m.Timing.Election.Milliseconds(),
		// A member that finds its data differing from its peers' stops instead of
		// spreading it.
		FeatureGates: "InitialCorruptCheck=true,CompactHashCheck=true",
		LogLevel:     "info",
		Logger:       "zap",
	}
	b, err := yaml.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("configuring etcd member %q: %w", m.Name, err)
	}
	return b, nil
}

// Alone is the initial cluster that holds this member only.
func (m Member) Alone() string { return m.Name + "=" + m.url(PeerPort) }

// PeerURL is where other members reach it.
func (m Member) PeerURL() string { return m.url(PeerPort) }

func (m Member) check() error {
	switch {
	case m.Name == "":
		return errors.New("it has no name")
	case !m.Address.IsValid() || m.Address.IsUnspecified():
		return fmt.Errorf("%s is no address that peers could reach", m.Address)
	case m.Token == "":
		return errors.New("the cluster token is empty")
	}
	want := m.Alone()
	members := strings.Split(m.InitialCluster, ",")
	for _, have := range members {
		if have == want {
			if m.Bootstrap && len(members) != 1 {
				return fmt.Errorf("the first member of a new cluster starts alone, the initial cluster is %s", m.InitialCluster)
			}
			return nil
		}
	}
	return fmt.Errorf("the initial cluster %q does not hold %s", m.InitialCluster, want)
}

func (m Member) url(port string) string {
	return "https://" + net.JoinHostPort(m.Address.String(), port)
}
