// Package agent is bootstrapd's inside: it enrols the machine, keeps the server
// informed, and makes the node what the server's directive says, by ordered
// idempotent steps.
//
// It needs the server for change and never for running: the last directive, the
// key, certificates and every service's files are on the node's disk, so a
// reboot without a server brings everything back.
package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/ipmi"
	"github.com/imagectl/imagectl/bootstrap/lldp"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/vip"
)

// Agent is one machine's agent. All fields but the listeners are needed.
type Agent struct {
	Host    *host.Host
	Config  nodeconf.Config
	Log     *slog.Logger
	Version string
	Now     func() time.Time
	// Rand is a cryptographic source.
	Rand io.Reader
	// Jitter returns a number from 0 to 1.
	Jitter func() float64
	// Balancer takes connections for the API servers, and API those of operators
	// for the node API; both are used in the mode nodeconf.Node only, and closed by
	// Run. Nil means not to serve.
	Balancer, API net.Listener
	// Ready is called once when the agent does its work; may be nil.
	Ready func()

	id        *identity
	authority *authority
	servers   *servers
	// kubernetes are clients of the API servers.
	kubernetes kubeClients
	// rollAt is when the certificate of a former CA is renewed; only talk uses it.
	rollAt time.Time
	// neighbours are who is at the other end of the machine's cables.
	neighbours neighbours
	// controller is what the machine's BMC says of itself, and askBMC is askMachinesBMC;
	// tests that need none leave it nil.
	controller controller
	askBMC     func(context.Context) (ipmi.Controller, error)
	// listen is lldp.Listen; tests that need no neighbours leave it nil.
	listen func(ctx context.Context, card string) (lldp.Neighbour, error)
	// askEtcd is etcd.Ask but in tests.
	askEtcd func(context.Context, string, *tls.Config) (etcd.Status, error)
	// askDisk is etcd.AskDisk but in tests.
	askDisk func(context.Context, string, *tls.Config) (etcd.Disk, error)
	// askShown is etcd.Show but in tests.
	askShown func(ctx context.Context, address string, conf *tls.Config) (etcd.Shown, error)
	// askNode is getNode but in tests.
	askNode func(ctx context.Context, name string) (kubeNode, error)
	// removeFormer is dropFormer but in tests.
	removeFormer func(context.Context, *api.FormerNode) (api.FormerNode_Outcome, error)
	// askAPIServer is getAPIServer but in tests.
	askAPIServer func(context.Context, *api.Run) (*x509.Certificate, error)
	// askEncryption is getEncryption, and rewriteSecrets patchSecrets, but in tests.
	askEncryption  func(ctx context.Context, address string) (string, error)
	rewriteSecrets func(context.Context) (int, error)
	// openEtcd is etcd.Open but in tests.
	openEtcd func(context.Context, []string, *tls.Config) (etcdCluster, error)
	// progressTime bounds a report of progress, which is lossy by contract: an
	// installation never waits for one for long. It is two seconds but in tests.
	progressTime time.Duration
	// linkPatience is the constant of that name but in tests.
	linkPatience time.Duration
	// witnessPause is between two signatures of the audit log's end. It is ten seconds but
	// in tests.
	witnessPause time.Duration
	// link is where the API's address goes; tests that need none leave it nil.
	link vip.Link
	// renewAfter holds back the next attempt to renew; only talk uses it.
	renewAfter time.Time
	// keptByNTP is Host.ClockKept; tests whose clock nobody keeps leave it nil.
	keptByNTP func() bool
	// clockConfirmed: since this process began our clock was right once. clockSaid is when it was
	// last said that the server's is another. Only talk uses them.
	clockConfirmed bool
	clockSaid      time.Time
}

// Run works until ctx ends, which is no error.
func (a *Agent) Run(ctx context.Context) error {
	a.askEtcd, a.openEtcd, a.askNode, a.askAPIServer = etcd.Ask, openEtcd, a.getNode, a.getAPIServer
	a.removeFormer, a.askDisk, a.askShown = a.dropFormer, etcd.AskDisk, etcd.Show
	a.askEncryption, a.rewriteSecrets = a.getEncryption, a.patchSecrets
	a.progressTime, a.witnessPause, a.listen = 2*time.Second, 10*time.Second, lldp.Listen
	a.askBMC, a.link, a.linkPatience = a.askMachinesBMC, vip.Kernel{}, linkPatience
	a.keptByNTP = a.Host.ClockKept
	return a.run(ctx)
}

func (a *Agent) run(ctx context.Context) error {
	if err := a.open(); err != nil {
		return err
	}
	var hearing sync.WaitGroup
	defer hearing.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if a.listen != nil {
		for _, i := range a.Host.Facts().Interfaces {
			hearing.Go(func() { a.hear(ctx, i.Name) })
		}
	}
	if a.askBMC != nil {
		hearing.Go(func() { a.lookForBMC(ctx) })
	}
	switch a.Config.Mode {
	case nodeconf.Installer:
		return a.install(ctx)
	case nodeconf.Node:
		return a.node(ctx)
	default:
		return fmt.Errorf("running the agent: there is no mode %q", a.Config.Mode)
	}
}

// open loads what is on disk.
func (a *Agent) open() error {
	var err error
	if a.id, err = loadIdentity(a.Host, a.Rand, a.Config.TPM); err != nil {
		a.Host.Print("imagectl: " + err.Error())
		return err
	}
	if a.authority, err = loadAuthority(a.Host, a.Config); err != nil {
		return err
	}
	a.servers = newServers(a.Config, a.authority, a.id, a.Now)
	return nil
}

func (a *Agent) ready() {
	if a.Ready != nil {
		a.Ready()
	}
}

func (a *Agent) spki() ([]byte, error) { return x509.MarshalPKIXPublicKey(a.id.key.Public()) }

// poke wakes whoever waits on a channel of one, without blocking.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// step is a status for the server.
func step(name string, state api.StepStatus_State, detail string) *api.StepStatus {
	return &api.StepStatus{Name: name, State: state, Detail: detail}
}
