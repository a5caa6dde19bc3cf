package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	statestore "github.com/imagectl/imagectl/bootstrap/store"
)

// etcdFlags name an etcd cluster for the servers' state.
type etcdFlags struct {
	endpoints            []string
	ca, certificate, key string
	state                string
}

func (f *etcdFlags) add(cmd *cobra.Command, endpoints string) {
	cmd.Flags().StringSliceVar(&f.endpoints, endpoints, nil, "`URLs` of the etcd cluster's members, such as https://10.0.0.21:2379,https://10.0.0.22:2379")
	cmd.Flags().StringVar(&f.ca, "etcd-ca", "", "`file` with the CA of etcd's certificates (PEM)")
	cmd.Flags().StringVar(&f.certificate, "etcd-cert", "", "`file` with the client certificate for etcd (PEM); it is read again for every connection")
	cmd.Flags().StringVar(&f.key, "etcd-key", "", "`file` with the private key of --etcd-cert")
	cmd.Flags().StringVar(&f.state, "state", "/var/lib/imagectl", "state `directory`")
}

// location is what the flags say, with absolute paths.
func (f *etcdFlags) location() (statestore.Location, error) {
	l := statestore.Location{Endpoints: f.endpoints}
	for _, p := range []struct {
		flag, path string
		to         *string
	}{{"--etcd-ca", f.ca, &l.CA}, {"--etcd-cert", f.certificate, &l.Certificate}, {"--etcd-key", f.key, &l.Key}} {
		if p.path == "" {
			return l, usageError{fmt.Errorf("%s is missing: etcd is called by mutual TLS only", p.flag)}
		}
		abs, err := filepath.Abs(p.path)
		if err != nil {
			return l, err
		}
		*p.to = abs
	}
	return l, nil
}

func newServerMove(g *globals) *cobra.Command {
	var f etcdFlags
	var embedded bool
	cmd := &cobra.Command{
		Use:   "move",
		Short: "Move the state of imagectl serve to an etcd cluster, or back",
		Long: "Move the state of imagectl serve from its state directory to an etcd cluster, where\n" +
			"several servers share it, or back into the directory. Run it on the server's machine\n" +
			"while no server runs. It can be killed at any moment and run again; until it has\n" +
			"ended, the state is where it was, and starting the server gives the move up.",
		Example: "  sudo imagectl server move --to-etcd https://10.0.0.21:2379,https://10.0.0.22:2379 --etcd-ca ca.pem --etcd-cert client.pem --etcd-key client.key\n" +
			"  sudo imagectl server move --to-embedded",
		Args: needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			if embedded == (len(f.endpoints) > 0) {
				return usageError{errors.New("say --to-etcd with its URLs, or --to-embedded")}
			}
			spec, err := g.spec()
			if err != nil {
				return err
			}
			c := statestore.Config{Dir: f.state, Cluster: spec.Name, Log: g.stdio.Err}
			if embedded {
				n, err := statestore.ToEmbedded(cmd.Context(), c)
				if err != nil {
					return err
				}
				fmt.Fprintf(g.stdio.Out, "moved: %d records of cluster %s are in %s now, and no longer on etcd\n", n, spec.Name, f.state)
				fmt.Fprintln(g.stdio.Out, "next: take server.peers out of cluster.yaml; start imagectl serve; delete the state directories of the other servers")
				return nil
			}
			at, err := f.location()
			if err != nil {
				return err
			}
			n, err := statestore.ToEtcd(cmd.Context(), c, at)
			if err != nil {
				return err
			}
			fmt.Fprintf(g.stdio.Out, "moved: %d records of cluster %s are on etcd now (%s), and no longer in %s\n", n, spec.Name, strings.Join(at.Endpoints, ", "), f.state)
			fmt.Fprintln(g.stdio.Out, "next: name the further servers in server.peers of cluster.yaml; on each of them imagectl server join; start imagectl serve everywhere")
			return nil
		},
	}
	f.add(cmd, "to-etcd")
	cmd.Flags().BoolVar(&embedded, "to-embedded", false, "move it from the etcd cluster into the state directory")
	return cmd
}

func newServerJoin(g *globals) *cobra.Command {
	var f etcdFlags
	var identity string
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Make a state directory for one more server of a cluster",
		Long: "Make a state directory for one more imagectl serve, whose state is on the etcd\n" +
			"cluster that another server has moved it to. The identity is that server's\n" +
			"identity.age: it opens the cluster's private keys, which are on etcd encrypted to it.\n" +
			"Bring it by a way as safe as the keys themselves, and delete the copy afterwards.",
		Example: "  sudo imagectl server join --etcd https://10.0.0.21:2379,https://10.0.0.22:2379 --etcd-ca ca.pem --etcd-cert client.pem --etcd-key client.key --identity identity.age",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			if identity == "" || len(f.endpoints) == 0 {
				return usageError{fmt.Errorf("say where the state is with --etcd, and with --identity where the other server's identity.age is; see %s --help", cmd.CommandPath())}
			}
			spec, err := g.spec()
			if err != nil {
				return err
			}
			return g.joinServers(cmd.Context(), spec.Name, f, identity)
		},
	}
	f.add(cmd, "etcd")
	cmd.Flags().StringVar(&identity, "identity", "", "`file` identity.age of another server's state directory")
	return cmd
}

func (g *globals) joinServers(ctx context.Context, cluster string, f etcdFlags, identity string) error {
	at, err := f.location()
	if err != nil {
		return err
	}
	key, err := os.ReadFile(identity)
	if err != nil {
		return fmt.Errorf("reading the identity: %w", err)
	}
	n, err := statestore.Examine(ctx, at, statestore.Config{Cluster: cluster, Log: g.stdio.Err}, key)
	if err != nil {
		return fmt.Errorf("looking for the state: %w", err)
	}
	if err := statestore.Join(ctx, f.state, at, key); err != nil {
		return err
	}
	fmt.Fprintf(g.stdio.Out, "joined: %s uses the state of cluster %s on etcd, %d records; every secret opens\n", f.state, cluster, n)
	fmt.Fprintln(g.stdio.Out, "next: delete the copy of identity.age; bring the same cluster.yaml, imagectl.lock and out/; imagectl serve --state "+f.state)
	return nil
}
