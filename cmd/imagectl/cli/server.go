package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/backup/bucket"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/backup/nodecopy"
)

func newServer(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "server",
		Short:   "Back up, restore, move and share the state of imagectl serve, share what it serves, and roll its CA and the key for Secrets over",
		Example: "  imagectl server backup\n  imagectl server backup --to /media/usb\n  imagectl server restore /mnt/backups --identity recovery.key --state /var/lib/imagectl\n  sudo imagectl server move --to-embedded",
		Args:    needVerb,
		RunE:    func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newServerBackup(g), newServerRestore(g), newServerMove(g), newServerJoin(g), newServerPublish(g), newServerCA(g), newServerEncryption(g))
	return cmd
}

func newServerBackup(g *globals) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Have the running server make an encrypted backup of its state now",
		Long: "Have the running server make a backup of its state now: in the directory of\n" +
			"backup.target in cluster.yaml, or with --to in a directory of this machine. It is\n" +
			"encrypted to the keys of backup.recipients, and holds all that another machine\n" +
			"needs to go on in this one's place, private keys included.",
		Example: "  imagectl server backup\n  imagectl server backup --to /media/usb",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			stream, err := r.operator().BackupServer(cmd.Context(), connect.NewRequest(&api.BackupServerRequest{Send: to != ""}))
			if err != nil {
				return r.explain(err)
			}
			defer stream.Close()
			if to != "" {
				path, size, err := receiveBackup(to, stream)
				if err != nil {
					return r.explain(err)
				}
				fmt.Fprintf(g.stdio.Out, "saved %s, %d bytes\n", path, size)
				return nil
			}
			if !stream.Receive() {
				return cmp.Or(r.explain(stream.Err()), errors.New("the server ended the call without an answer"))
			}
			m := stream.Msg()
			fmt.Fprintf(g.stdio.Out, "saved %s on the server's machine, %d bytes, and read it back\n", filepath.Join(m.GetDirectory(), m.GetName()), m.GetSize())
			return nil
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "save it in this `directory` of this machine instead")
	return cmd
}

// receiveBackup saves what a server sends. The file has its name when it is whole.
func receiveBackup(dir string, stream *connect.ServerStreamForClient[api.BackupServerResponse]) (path string, size int64, err error) {
	f, err := os.CreateTemp(dir, ".partial-*") // mode 0600
	if err != nil {
		return "", 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	name := ""
	for stream.Receive() {
		n, err := f.Write(stream.Msg().GetChunk())
		if err != nil {
			return "", 0, err
		}
		size += int64(n)
		name = stream.Msg().GetName()
	}
	if err := stream.Err(); err != nil {
		return "", 0, err
	}
	if name == "" || name != filepath.Base(name) {
		return "", 0, errors.New("receiving a backup: the server did not send it to its end")
	}
	if err := f.Sync(); err != nil {
		return "", 0, err
	}
	path = filepath.Join(dir, name)
	if err := os.Rename(f.Name(), path); err != nil {
		return "", 0, err
	}
	return path, size, syncDir(dir)
}

func newServerRestore(g *globals) *cobra.Command {
	var state, identity, from string
	var nodes []string
	cmd := &cobra.Command{
		Use:   "restore [FILE|DIR]",
		Short: "Make a state directory out of a backup, on any machine",
		Long: "Make a state directory for imagectl serve out of a backup, on any machine and\n" +
			"without a server; of a directory the newest backup is taken. All of it is read and\n" +
			"checked before anything is written, and a directory with anything in it is left\n" +
			"alone. The old server must never run again. With --bucket the backup comes out of the\n" +
			"bucket of that entry of upload in cluster.yaml; a name takes another than the newest.\n" +
			"With --from-node it comes from a control plane that keeps copies (backup.nodes in\n" +
			"cluster.yaml): the newest of all nodes that are named. That takes the context file of\n" +
			"an admin, whose certificate may have expired.",
		Example: "  imagectl server restore /mnt/backups --identity recovery.key --state /var/lib/imagectl\n" +
			"  imagectl server restore --bucket store --identity recovery.key --state /var/lib/imagectl\n" +
			"  imagectl server restore --from-node 10.0.0.11 --from-node 10.0.0.12 --identity recovery.key",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 0 && from == "" && len(nodes) == 0 || identity == "" {
				return usageError{fmt.Errorf("say which backup, and with --identity the file of the recovery key; see %s --help", cmd.CommandPath())}
			}
			if len(nodes) > 0 && (len(args) > 0 || from != "") {
				return usageError{fmt.Errorf("a backup comes from nodes, from a bucket or from a file; name one of them")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if from == "" && len(nodes) == 0 {
				return g.restoreServer(cmd.Context(), args[0], identity, state)
			}
			dir, err := os.MkdirTemp("", "imagectl-restore-*") // mode 0700; it is encrypted
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			path := ""
			if len(nodes) > 0 {
				path, err = g.backupOfNodes(cmd.Context(), nodes, dir)
			} else {
				path, err = g.fetchBackup(cmd.Context(), from, strings.Join(args, ""), dir)
			}
			if err != nil {
				return err
			}
			return g.restoreServer(cmd.Context(), path, identity, state)
		},
	}
	cmd.Flags().StringVar(&state, "state", "/var/lib/imagectl", "state `directory` to make")
	cmd.Flags().StringVar(&identity, "identity", "", "`file` with the recovery key (age-keygen)")
	cmd.Flags().StringVar(&from, "bucket", "", "`name` of the entry of upload in cluster.yaml whose bucket has the backup")
	cmd.Flags().StringArrayVar(&nodes, "from-node", nil, "`address` of a control plane that keeps a copy; may be repeated")
	return cmd
}

// fetchBackup brings one out of a bucket.
func (g *globals) fetchBackup(ctx context.Context, bucket, name, dir string) (string, error) {
	place, err := g.backupBucket(bucket, backupPrefix, files.State)
	if err != nil {
		return "", err
	}
	return backup.Fetch(ctx, place, name, dir)
}

// backupOfNodes brings the newest that nodes keep.
func (g *globals) backupOfNodes(ctx context.Context, nodes []string, dir string) (string, error) {
	r, err := g.openContext()
	if err != nil {
		return "", err
	}
	var addresses []string
	for _, n := range nodes {
		if _, _, err := net.SplitHostPort(n); err != nil {
			n = net.JoinHostPort(strings.Trim(n, "[]"), nodePort)
		}
		addresses = append(addresses, n)
	}
	got, err := nodecopy.Source{Cluster: r.Cluster, CAs: r.roots, Former: r.former, Certificate: r.cert, Now: time.Now}.Fetch(ctx, addresses, dir, func(err error) {
		fmt.Fprintf(g.stdio.Err, "warning: %v\n", err)
	})
	if err != nil {
		return "", err
	}
	fmt.Fprintf(g.stdio.Out, "%s gave %s, %d bytes, signed by the server\n", got.Node, got.File.Name, got.File.Size)
	return got.Path, nil
}

func (g *globals) restoreServer(ctx context.Context, from, identity, state string) error {
	identities, err := readIdentities(identity)
	if err != nil {
		return err
	}
	now := time.Now()
	r, err := backup.Restore(ctx, backup.RestoreConfig{From: from, State: state, Identities: identities, Now: now, Log: g.stdio.Err})
	if err != nil {
		return err
	}
	h := r.Header
	w := g.stdio.Out
	fmt.Fprintf(w, "restored %s: cluster %s as of %s (%s ago), %d records, every secret opens\n", state, h.Cluster, h.At.Local().Format(time.DateTime), now.Sub(h.At).Round(time.Second), r.Records)
	fmt.Fprintf(w, "next: make sure that the old server never starts again; give this machine its address (nodes call %s); imagectl serve --state %s\n", strings.Join(h.Servers, " and "), state)
	fmt.Fprintln(w, "docs/backup.md says what is not as it was: machines to approve or arm again, certificates to revoke again")
	return nil
}

// readIdentities reads the file of a recovery key.
func readIdentities(path string) ([]age.Identity, error) {
	key, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the recovery key: %w", err)
	}
	defer key.Close()
	identities, err := age.ParseIdentities(key)
	if err != nil {
		return nil, fmt.Errorf("reading the recovery key %s: %w; want the file that age-keygen wrote", path, err)
	}
	return identities, nil
}

// backupPrefix is where backups are in a bucket, away from images.
const backupPrefix = "backups"

// backupBucket is a place for files of a kind in the bucket of an entry of upload; nil for an empty
// name.
func (g *globals) backupBucket(name, prefix string, kind files.Kind) (backup.Place, error) {
	if name == "" {
		return nil, nil
	}
	d, err := g.destination(name)
	if err != nil {
		return nil, err
	}
	if d.Type != "s3" {
		return nil, usageError{fmt.Errorf("upload target %s is of type %s; backups go to type s3", name, d.Type)}
	}
	secret, err := g.uploadSecret(d)
	if err != nil {
		return nil, err
	}
	client, err := g.uploadClient(d)
	if err != nil {
		return nil, err
	}
	b, err := bucket.New(bucket.Config{
		Endpoint: d.Endpoint, Bucket: d.Bucket, Region: d.Region, Prefix: prefix, Kind: kind,
		AccessKey: d.Username, SecretKey: secret, Transport: client.Transport,
	})
	return b, badDestination(d, err)
}

// newKeeper prepares the backups of a server; nil when cluster.yaml asks for none.
func newKeeper(c backup.Config, recipients []string) (*backup.Keeper, error) {
	if len(recipients) == 0 {
		return nil, nil
	}
	var err error
	if c.Recipients, err = parseRecipients(recipients); err != nil {
		return nil, err
	}
	return backup.NewKeeper(c)
}

func parseRecipients(all []string) ([]age.Recipient, error) {
	var out []age.Recipient
	for _, text := range all {
		r, err := age.ParseX25519Recipient(text)
		if err != nil {
			return nil, fmt.Errorf("reading backup.recipients: %w", err)
		}
		out = append(out, r)
	}
	return out, nil
}
