package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	statestore "github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
)

// serveFlags are the flags of imagectl serve.
type serveFlags struct {
	state, out, cache string
	operator          string
	address           string
	dashboard         string
	metrics           string
	tls               bootTLSFlags
	// clockIsRight: this machine's clock is believed although the audit log is ahead of it.
	clockIsRight bool
	debug        bool
}

// bootTLSFlags are for UEFI that boots by HTTPS; without a certificate it does not.
type bootTLSFlags struct {
	certificate, key string
	port             int
}

// load reads the files; nil means that there is no HTTPS boot.
func (f bootTLSFlags) load(p plan.Plan) (*tls.Config, error) {
	if f.certificate == "" {
		return nil, nil
	}
	certificate, err := os.ReadFile(f.certificate)
	if err != nil {
		return nil, fmt.Errorf("reading --boot-tls-cert: %w", err)
	}
	key, err := os.ReadFile(f.key)
	if err != nil {
		return nil, fmt.Errorf("reading --boot-tls-key: %w", err)
	}
	return httpboot.TLS(certificate, key, p.Server.Address, time.Now())
}

func newServe(g *globals) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the rack's server: network boot, enrolment, coordination",
		Long: "Run the rack's server: DHCP, TFTP and HTTP for machines that netboot, HTTPS for\n" +
			"everything after. It needs root, or the capabilities CAP_NET_BIND_SERVICE and\n" +
			"CAP_NET_RAW. All that must not be lost is in the state directory.\n\n" +
			"While it runs it keeps the context file ($IMAGECTL_CONFIG) of the cluster's first\n" +
			"operator fresh: a certificate of twelve hours, renewed every four. Other people\n" +
			"have own keys: imagectl operators.",
		Example: "  sudo imagectl serve\n  sudo imagectl serve --state /var/lib/imagectl --out out",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			p, err := g.plan()
			if err != nil {
				return err
			}
			has, err := localAddresses()
			if err != nil {
				return err
			}
			if p, err = ownPlan(p, f.address, has); err != nil {
				return err
			}
			return g.serve(cmd.Context(), p, f)
		},
	}
	cmd.Flags().StringVar(&f.state, "state", "/var/lib/imagectl", "state directory")
	cmd.Flags().StringVar(&f.out, "out", "out", "output directory of imagectl build")
	cmd.Flags().StringVar(&f.operator, "operator", "", "operator's name in the context file (default the user who calls, also through sudo)")
	cmd.Flags().StringVar(&f.address, "address", "", "which of server.address and server.peers this server is (default the one that this machine has)")
	cmd.Flags().StringVar(&f.dashboard, "dashboard", dashboardOpen, "who sees the dashboard on the https port: open (anybody, without addresses), operators, off")
	cmd.Flags().StringVar(&f.metrics, "metrics", "", "also serve /metrics by plain HTTP at this loopback `address`, such as 127.0.0.1:9640; the https port has it for operators' certificates")
	cmd.Flags().StringVar(&f.tls.certificate, "boot-tls-cert", "", "let UEFI boot by HTTPS instead of HTTP, with this RSA certificate in PEM (docs/netboot.md)")
	cmd.Flags().StringVar(&f.tls.key, "boot-tls-key", "", "private key of --boot-tls-cert")
	cmd.Flags().IntVar(&f.tls.port, "boot-tls-port", 8444, "port for that")
	cmd.Flags().BoolVar(&f.clockIsRight, "clock-is-right", false, "start although the audit log has entries of a later time: the clock was wrong when they were written, and is right now")
	cmd.Flags().BoolVar(&f.debug, "debug", false, "log why requests were not answered")
	cacheFlag(cmd, &f.cache)
	return cmd
}

// serve brings everything up in the order in which it can fail without trace:
// what was built, sockets, state; then it runs until ctx ends.
func (g *globals) serve(ctx context.Context, p plan.Plan, f serveFlags) error {
	level := slog.LevelInfo
	if f.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(g.stdio.Err, &slog.HandlerOptions{Level: level}))

	bootTLS, err := f.tls.load(p)
	if err != nil {
		return usageError{err}
	}
	from := sources{out: f.out, cache: f.cache}
	if from.shelf, err = g.shelf(p); err != nil {
		return err
	}
	site, err := g.loadSite(ctx, p, from)
	if err != nil {
		return err
	}
	var metricsAt net.Listener
	if f.metrics != "" {
		if metricsAt, err = (&net.ListenConfig{}).Listen(ctx, "tcp", f.metrics); err != nil {
			return fmt.Errorf("listening for /metrics: %w; let --metrics name another port", err)
		}
		defer metricsAt.Close()
	}
	ports := listenConfig(p)
	if bootTLS != nil {
		ports.BootTLSPort = f.tls.port
	}
	sockets, err := listen.Open(ctx, ports)
	if err != nil {
		return err
	}
	defer sockets.Close()
	return g.serveOn(ctx, p, f, opened{site: site, sockets: sockets, metrics: metricsAt, bootTLS: bootTLS}, log)
}

// opened is what serve has found and opened before it reads its state.
type opened struct {
	site    *site
	sockets listen.Sockets
	// metrics is nil without --metrics, bootTLS without --boot-tls-cert.
	metrics net.Listener
	bootTLS *tls.Config
}

// serveOn serves on sockets that are open.
func (g *globals) serveOn(ctx context.Context, p plan.Plan, f serveFlags, on opened, log *slog.Logger) error {
	site := on.site
	st, err := statestore.Open(ctx, statestore.Config{Dir: f.state, Cluster: p.Cluster, Log: g.stdio.Err, Name: site.servers()[0]})
	if err != nil {
		return err
	}
	defer st.Close()
	if err := checkPeers(p, st, f.state); err != nil {
		return err
	}

	monitor, err := newMonitor(p)
	if err != nil {
		return err
	}
	if on.bootTLS != nil {
		if err := monitor.watchBootTLS(httpboot.End(on.bootTLS)); err != nil {
			return err
		}
	}
	bootPath := &bootPath{journal: &monitor.journal, plan: p, notices: monitor.notices, consoles: &monitor.consoles}
	config := site.serverConfig()
	config.Asked, config.Pages = monitor.asked, monitor.pages(f.dashboard)
	config.Store, config.Boot, config.Log = st, bootPath, log
	if config.BMC, err = g.loadBMCs(p, site.medium, st.Unseal); err != nil {
		return err
	}
	if err := g.nodeNetworks(config.Machines, p, st.Unseal); err != nil {
		return err
	}
	config.Version, config.Now, config.Rand = buildVersion(), time.Now, rand.Reader
	config.ClockIsRight = f.clockIsRight
	copies, err := g.backupBucket(p.Backup.Bucket, backupPrefix, files.State)
	if err != nil {
		return err
	}
	keeper, err := newKeeper(backup.Config{
		Header: backup.Header{Cluster: p.Cluster, Program: config.Version, Servers: config.NodeServers},
		Store:  st, Leases: filepath.Join(f.state, backup.LeasesFile), Leases6: filepath.Join(f.state, backup.Leases6File),
		Dir: p.Backup.Target, Copies: copies, Every: p.Backup.Every, Keep: p.Backup.Keep, Nodes: p.Backup.Nodes, Now: time.Now, Log: log,
	}, p.Backup.Recipients)
	if err != nil {
		return err
	}
	if keeper != nil {
		config.Backups = keeper
	}
	if config.EtcdSnapshots, err = g.etcdSnapshots(p.Backup, f.state); err != nil {
		return err
	}
	api, err := serverapi.New(ctx, config)
	if err != nil {
		return err
	}
	if err := monitor.watch(api); err != nil {
		return err
	}
	boots, err := site.catalogConfig(string(api.CAPEM()), st)
	if err != nil {
		return err
	}
	cat, err := catalog.New(boots)
	if err != nil {
		return err
	}
	bootPath.catalog = cat

	leases4, leases6, closeLeases, err := openLeases(ctx, p, st, f.state)
	if err != nil {
		return err
	}
	defer closeLeases()
	duid, duids := serverDUIDs(p, api.FirstCAPEM())
	tasks, err := server.BootTasks(server.Config{
		Sockets: on.sockets, Address: p.Server.Address, HTTPPort: p.Server.HTTPPort, Source: cat, Open: site.open, HTTPBoot: site.httpBoot, BootTLS: on.bootTLS, BootTLSPort: f.tls.port,
		IPXEBIOS: site.ipxeBIOS, IPXEUEFI: site.ipxeUEFI, IPXEArm64: site.ipxeArm64, Shim: site.shim, GRUB: site.grub, Leases: leases4, Peers: p.Server.Peers, Share: share(p),
		Address6: p.Boot.DHCP6.Address, DUID: duid, DUIDs: duids, Leases6: leases6, Recorder: monitor, Log: log,
		Heard:  monitor.consoles.Add,
		Meters: server.Meters{DHCP: monitor.boots.DHCP(), TFTP: monitor.boots.TFTP(), HTTP: monitor.boots.HTTP(), Syslog: monitor.boots.Syslog()},
	})
	if err != nil {
		return err
	}
	keep, err := g.contextTask(ctx, api, p, site.servers(), f.operator, log)
	if err != nil {
		return err
	}
	tasks = append(tasks,
		server.Task{Name: "https", Run: func(ctx context.Context) error { return api.Serve(ctx, on.sockets.HTTPS) }},
		server.Task{Name: "netboot", Run: api.Netboot},
		server.Task{Name: "other servers", Run: api.Follow},
		server.Task{Name: "etcd snapshots", Run: api.EtcdSnapshots},
		server.Task{Name: "state", Run: func(ctx context.Context) error { return watchState(ctx, st) }},
		keep,
	)
	if keeper != nil {
		tasks = append(tasks, server.Task{Name: "backup", Run: keeper.Run})
	}
	if on.bootTLS != nil {
		tasks = append(tasks, server.Task{Name: "certificate of HTTPS boot", Run: func(ctx context.Context) error { return monitor.warnOfBootTLS(ctx, log) }})
	}
	if on.metrics != nil {
		tasks = append(tasks, server.HTTPTask("metrics", on.metrics, monitor.metricsOnly(), log))
	}
	// The sockets are open: who calls from now on is answered.
	fmt.Fprintf(g.stdio.Out, "imagectl serve: ready: cluster %s, %d machines, https://%s\n", p.Cluster, len(p.Machines), netip.AddrPortFrom(p.Server.Address, uint16(p.Server.HTTPSPort)))
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("telling systemd that we are ready failed", "error", err.Error())
	}
	err = server.Run(ctx, tasks...)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyStopping); err != nil {
		log.Warn("telling systemd that we stop failed", "error", err.Error())
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// watchState ends with the reason why the state cannot be used any more.
func watchState(ctx context.Context, st *statestore.Store) error {
	for {
		changed := st.TermChanged()
		if err := st.Healthy(); errors.Is(err, statestore.ErrMoved) {
			return err
		}
		select {
		case <-changed:
		case <-st.Done():
			return st.Err()
		case <-ctx.Done():
			return nil
		}
	}
}

func listenConfig(p plan.Plan) listen.Config {
	c := listen.Config{
		Interface: p.Boot.Interface, Address: p.Server.Address,
		DHCP:       p.Boot.DHCP == plan.DHCPAuthoritative || p.Boot.DHCP == plan.DHCPProxy,
		BootServer: p.Boot.DHCP == plan.DHCPProxy || p.Boot.DHCP == plan.DHCPProxy4011,
		HTTPPort:   p.Server.HTTPPort, HTTPSPort: p.Server.HTTPSPort,
		Syslog: p.Boot.Syslog, Shared: len(p.Boot.Neighbours) > 0,
	}
	if d := p.Boot.DHCP6; d.Address.IsValid() {
		c.Address6, c.DHCP6 = d.Address, d.Mode != plan.DHCP6Off
	}
	for _, s := range p.Boot.Subnets {
		if s.Interface != "" && s.Interface != p.Boot.Interface {
			c.Links = append(c.Links, listen.Link{Interface: s.Interface, Prefix: s.Prefix})
		}
	}
	return c
}

// contextTask writes the context file now and keeps its certificate fresh.
func (g *globals) contextTask(ctx context.Context, api *serverapi.Server, p plan.Plan, servers []string, operator string, log *slog.Logger) (server.Task, error) {
	path, err := contextPath()
	if err != nil {
		return server.Task{}, err
	}
	let := api.LocalNamed
	if operator == "" {
		let, operator = api.Local, os.Getenv("SUDO_USER")
	}
	if operator == "" {
		operator = "local"
		if u, err := user.Current(); err == nil {
			operator = u.Username
		}
	}
	write := func(ctx context.Context) (time.Time, error) {
		cert, key, end, err := let(ctx, operator)
		if err != nil {
			return time.Time{}, err
		}
		return end, serverContext{
			Cluster: p.Cluster, Server: "https://" + netip.AddrPortFrom(p.Server.Address, uint16(p.Server.HTTPSPort)).String(),
			Servers: servers, CA: string(api.CAPEM()), Former: string(api.FormerCAPEM()), Certificate: string(cert), Key: string(key),
		}.write(path)
	}
	end, err := write(ctx)
	if connect.CodeOf(err) == connect.CodePermissionDenied {
		log.Warn("no context file is written", "operator", operator, "because", err.Error())
		return server.Task{Name: "context", Run: untilDone}, nil
	}
	if err != nil {
		return server.Task{}, err
	}
	log.Info("operator's context file written", "path", path, "operator", operator, "until", end)
	return server.Task{Name: "context", Run: func(ctx context.Context) error {
		for {
			select {
			case <-time.After(refreshIn(time.Until(end))):
			case <-ctx.Done():
				return nil
			}
			next, err := write(ctx)
			switch {
			case err == nil:
				end = next
			case connect.CodeOf(err) == connect.CodePermissionDenied:
				log.Warn("the context file is not refreshed any more", "operator", operator, "because", err.Error())
				return untilDone(ctx)
			case ctx.Err() == nil:
				// The old one is good for hours; serving machines goes on.
				log.Error("refreshing the context file", "error", err.Error())
			}
		}
	}}, nil
}

// untilDone is a task with nothing to do.
func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// refreshIn is when the context file is written next, by how long its certificate
// still lives. Where writing fails, that comes to nothing.
func refreshIn(left time.Duration) time.Duration { return max(pki.RenewAfter(left), time.Minute) }
