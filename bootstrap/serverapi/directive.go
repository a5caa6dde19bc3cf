package serverapi

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

// Ports of architecture.md.
const (
	etcdClientPort = 2379
	etcdPeerPort   = 2380
	apiServerPort  = 6443
)

// install words the Install directive of a machine.
func (s *Server) install(m Machine, armingID string) (*api.Install, error) {
	conf, err := nodeconf.Config{
		Cluster: s.cfg.Cluster, Mode: nodeconf.Node, Servers: s.cfg.NodeServers,
		CA: string(s.CAPEM()), Machine: m.Name, TPM: s.cfg.TPM,
	}.Encode()
	if err != nil {
		return nil, err
	}
	return &api.Install{
		ImageUrl: m.Image.URL, ImageSha256: m.Image.SHA256, ImageSize: m.Image.Size, Compression: "zstd",
		RawSize: m.Image.RawSize, RawSha256: m.Image.RawSHA256,
		Disk: m.Disk, Machine: m.Name, NodeConfig: conf, ArmingId: armingID,
		Files: append([]*api.File{{Path: "/etc/hostname", Mode: 0o644, Content: []byte(m.Name + "\n")}}, m.Files...),
	}, nil
}

// address of a machine: cluster.yaml's, or where it calls from.
func (s *Server) address(m Machine, source string) string {
	if m.Address.IsValid() {
		return m.Address.String()
	}
	if a, err := netip.ParseAddr(source); err == nil {
		return a.Unmap().String()
	}
	return ""
}

// addressOf is address for a machine that does not call now.
func (s *Server) addressOf(name string) string {
	m, ok := s.machineOf(name)
	if !ok {
		return ""
	}
	r, _ := s.board.get(name)
	if a := s.address(m, r.last.GetAddress()); a != "" {
		return a
	}
	record, _ := s.cfg.Store.Machine(name)
	return record.Address
}

// run words the Run directive of a machine.
func (s *Server) run(m Machine, d coordinator.Directive, c coordinator.Choices, from caller) *api.Run {
	kubernetes := s.kubernetesWanted(d, c)
	if m.ControlPlane {
		kubernetes.Policy, kubernetes.EncryptionKeys, kubernetes.EncryptionRewrite = s.policy(c), c.Encryption.Keys, d.Rewrite
	}
	return &api.Run{
		Machine: m.Name, Cluster: s.cfg.Cluster, Role: m.Role, ControlPlane: m.ControlPlane,
		Address: s.address(m, from.source), Labels: maps.Clone(m.Labels), Taints: m.Taints,
		Etcd: s.etcdWanted(m, d, c, from), Kubernetes: kubernetes,
		ClientCaPem: string(s.CAPEM()), Revocations: s.lists(m.ControlPlane), Firewall: s.firewall(m),
		Network: m.Network,
	}
}

// firewall lists the cluster's machines for a machine's firewall. cluster.yaml's
// addresses count before their machines are installed, so that who joins is known
// already; others count from their first call on.
func (s *Server) firewall(m Machine) *api.Firewall {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	return &api.Firewall{Off: m.FirewallOff, Allow: m.Allow, ControlPlanes: s.view.controlPlanes, Workers: s.view.workers}
}

func (s *Server) etcdWanted(m Machine, d coordinator.Directive, c coordinator.Choices, from caller) *api.EtcdWanted {
	w := &api.EtcdWanted{Reason: d.EtcdReason, Remove: d.EtcdRemove, Tend: d.Tend, TendAsked: d.TendAsked}
	switch d.Etcd {
	case coordinator.EtcdBootstrap:
		w.Action = api.EtcdWanted_ACTION_BOOTSTRAP
	case coordinator.EtcdJoin:
		w.Action = api.EtcdWanted_ACTION_JOIN
	case coordinator.EtcdRun:
		w.Action = api.EtcdWanted_ACTION_RUN
	case coordinator.EtcdAlone:
		w.Action, w.Alone = api.EtcdWanted_ACTION_ALONE, c.EtcdAloneID
		if c.EtcdSnapshot != (coordinator.Snapshot{}) {
			w.Snapshot, w.Begin, w.Restores = wireSnapshot(c.EtcdSnapshot), d.EtcdBegin, c.EtcdRestores
		}
	case coordinator.EtcdWait:
		w.Action = api.EtcdWanted_ACTION_WAIT
		if d.EtcdStop {
			w.Stop = c.EtcdAloneID
		}
	default:
		w.Action = api.EtcdWanted_ACTION_NONE
	}
	if w.Restart = d.EtcdRestart; d.Etcd != coordinator.EtcdNone {
		w.CaPem, w.CaTurn = s.etcdCAs(c)
	}
	w.ClusterToken = "imagectl-" + s.cfg.Cluster
	if d.Etcd == coordinator.EtcdBootstrap {
		w.InitialCluster = fmt.Sprintf("%s=https://%s", m.Name, hostPort(s.address(m, from.source), etcdPeerPort))
	}
	if d.Etcd != coordinator.EtcdNone {
		w.HeartbeatMs, w.ElectionMs = uint32(s.cfg.Etcd.Heartbeat.Milliseconds()), uint32(s.cfg.Etcd.Election.Milliseconds())
		for _, at := range s.addressesOf(c.EtcdVoters, etcdClientPort) {
			w.Endpoints = append(w.Endpoints, "https://"+at)
		}
	}
	return w
}

// addressesOf is where these machines listen on a port; one whose address is not
// known is left out.
func (s *Server) addressesOf(names []string, port int) []string {
	var out []string
	for _, name := range names {
		if a := s.addressOf(name); a != "" {
			out = append(out, hostPort(a, port))
		}
	}
	return out
}

func (s *Server) kubernetesWanted(d coordinator.Directive, c coordinator.Choices) *api.KubernetesWanted {
	k := s.cfg.Kubernetes
	w := &api.KubernetesWanted{
		Reason: d.KubernetesReason, Version: k.Version, PodCidr: k.PodCIDR, ServiceCidr: k.ServiceCIDR, DnsDomain: k.DNSDomain,
		CaPem: string(s.authority.kubernetes.CertificatePEM()),
	}
	switch d.Kubernetes {
	case coordinator.KubernetesInit:
		w.Action = api.KubernetesWanted_ACTION_INIT
	case coordinator.KubernetesJoinControlPlane:
		w.Action = api.KubernetesWanted_ACTION_JOIN_CONTROL_PLANE
	case coordinator.KubernetesJoinWorker:
		w.Action = api.KubernetesWanted_ACTION_JOIN_WORKER
	case coordinator.KubernetesRun:
		w.Action = api.KubernetesWanted_ACTION_RUN
	default:
		w.Action = api.KubernetesWanted_ACTION_WAIT
	}
	servers := slices.DeleteFunc(slices.Clone(c.APIServers), func(name string) bool { return s.cfg.Store.State(name) == machine.Retired })
	if len(servers) == 0 && c.KubernetesFirst != "" {
		servers = []string{c.KubernetesFirst}
	}
	w.ApiServers = s.addressesOf(servers, apiServerPort)
	w.ApiServerSans, w.ServerSigns, w.ApiVip = s.apiServerSANs(), s.serverSigns(c), s.vips()
	if d.First {
		w.Addons = k.Addons
	}
	if d.Renew {
		w.RenewBefore = timestamppb.New(s.renewal(c).before(s.cfg.Now()))
	}
	return w
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
