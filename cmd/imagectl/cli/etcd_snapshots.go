package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	thishost "github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/butane/cluster"
)

// snapshotPrefix is where snapshots of etcd are in a bucket.
const snapshotPrefix = "etcd-snapshots"

// etcdSnapshots is how a server takes snapshots of etcd; nil when cluster.yaml asks for none.
func (g *globals) etcdSnapshots(b cluster.Backup, state string) (*etcdsnap.Config, error) {
	if b.Etcd.Every == 0 {
		return nil, nil
	}
	recipients, err := parseRecipients(b.Recipients)
	if err != nil {
		return nil, err
	}
	c := &etcdsnap.Config{Plan: etcdsnap.Plan{Every: b.Etcd.Every, Keep: b.Etcd.Keep, KeepFor: b.Etcd.KeepFor}, Dir: b.Target, Scratch: state, Recipients: recipients, Inspect: inspectApart}
	if b.Bucket != "" {
		if c.Copies, err = g.backupBucket(b.Bucket, snapshotPrefix, files.Etcd); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// inspectApart reads a database in a process of its own, for a bad one may end whoever reads it.
func inspectApart(ctx context.Context, path string) (etcdsnap.Contents, error) {
	self, err := os.Executable()
	if err != nil {
		return etcdsnap.Contents{}, err
	}
	out, err := (&thishost.Host{}).Run(ctx, thishost.Command{Argv: []string{self, "etcd", "check", path, "-o", "json"}})
	var failed *thishost.RunError
	if err != nil && ctx.Err() == nil && errors.As(err, &failed) && endedByDatabase(failed) {
		return etcdsnap.Contents{}, &etcdsnap.BrokenError{Why: failed.Error()}
	}
	if err != nil {
		return etcdsnap.Contents{}, err
	}
	var c etcdsnap.Contents
	if err := json.Unmarshal(out, &c); err != nil {
		return c, fmt.Errorf("reading what %s etcd check says: %w", self, err)
	}
	return c, nil
}

// endedByDatabase says whether a check ended with a finding, or died of what it read: by a signal, or
// with exit status 2, as Go programs do that read where nothing is.
func endedByDatabase(e *thishost.RunError) bool {
	why := e.Cause.Error()
	return strings.Contains(string(e.Output), "is not whole") || why == "exit status 2" || strings.HasPrefix(why, "signal: ") && why != "signal: killed"
}

func newEtcdSnapshots(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "snapshots",
		Short: "List the snapshots of etcd that the server takes by schedule",
		Long: "List the snapshots of etcd that the server takes by schedule (backup.etcd in cluster.yaml):\n" +
			"where they are, of whose member, and the revision that they have at least. Everything that\n" +
			"etcd had acknowledged before that time is in them. \"imagectl etcd restore --from\" takes one.",
		Example: "  imagectl etcd snapshots\n  imagectl etcd snapshots -o json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ListEtcdSnapshots(cmd.Context(), connect.NewRequest(&api.ListEtcdSnapshotsRequest{}))
			if err != nil {
				return r.explain(err)
			}
			if f == formatJSON {
				return printMessage(g.stdio.Out, resp.Msg)
			}
			return printSnapshots(g.stdio.Out, resp.Msg)
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func printSnapshots(w io.Writer, m *api.ListEtcdSnapshotsResponse) error {
	var rows [][]string
	for _, s := range m.GetSnapshots() {
		var where []string
		if s.GetInDirectory() {
			where = append(where, "directory")
		}
		if s.GetInBucket() {
			where = append(where, "bucket")
		}
		revision := ""
		if s.GetRevision() > 0 {
			revision = fmt.Sprint(s.GetRevision())
		}
		checked := ""
		if s.GetCheckedAt() != nil {
			checked = "every page"
		}
		rows = append(rows, []string{s.GetName(), s.GetAt().AsTime().Local().Format(time.DateTime), s.GetMachine(), revision, mebibytes(s.GetSnapshot().GetSize()), strings.Join(where, ", "), checked})
	}
	if len(rows) > 0 {
		if err := table(w, []string{"SNAPSHOT", "TAKEN", "OF", "REVISION", "SIZE", "WHERE", "CHECKED"}, rows); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(w, "there are none yet")
	}
	places := "directory of the server: " + text(m.GetDirectory())
	if m.GetBucket() != "" {
		places += "; bucket: " + text(m.GetBucket())
	}
	fmt.Fprintln(w, places)
	for _, p := range m.GetProblems() {
		fmt.Fprintln(w, "warning: "+text(p))
	}
	return nil
}

func newEtcdCheck(g *globals) *cobra.Command {
	var f format
	var identity string
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Read a snapshot of etcd page by page, without a server",
		Long: "Read a snapshot of etcd to its end, without a server: the digest at its end, each page of\n" +
			"its database, and each key. With --identity a file that the server has saved is decrypted\n" +
			"first, into a file without a name in the directory for temporary files ($TMPDIR). It proves\n" +
			"that etcd can read it, and not that what is in it is what you want.",
		Example: "  imagectl etcd check etcd.db\n  imagectl etcd check imagectl-prod-20260501T120000.000Z.etcd.age --identity recovery.key",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("say which file; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path := args[0]
			look := func(path string) error {
				c, err := etcdsnap.Inspect(cmd.Context(), path)
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				if f == formatJSON {
					return json.NewEncoder(g.stdio.Out).Encode(c)
				}
				fmt.Fprintf(g.stdio.Out, "%s is whole: %s, up to revision %d, %d revisions of keys\n", args[0], mebibytes(uint64(c.Size)), c.Revision, c.Keys)
				return nil
			}
			if identity == "" {
				return look(path)
			}
			identities, err := readIdentities(identity)
			if err != nil {
				return err
			}
			in, err := os.Open(path)
			if err != nil {
				return err
			}
			defer in.Close()
			plain, err := etcdsnap.Decrypt(in, identities...)
			if err != nil {
				return err
			}
			return etcdsnap.InScratch(os.TempDir(), plain, look)
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().StringVar(&identity, "identity", "", "`file` with the recovery key, for a snapshot that the server has saved")
	return cmd
}

// savedSnapshot says how a file is opened that the server has saved. The zero value is for one that
// is not encrypted.
type savedSnapshot struct {
	identity, bucket string
	unsigned         bool
}

// snapshotFile is a snapshot that can be read several times. It is never decrypted to a disk.
type snapshotFile struct {
	file       *os.File
	identities []age.Identity
	// fetched is a directory that goes with it; empty for none.
	fetched string
}

// read begins at its beginning.
func (s *snapshotFile) read() (io.Reader, error) {
	in := io.NewSectionReader(s.file, 0, 1<<62)
	if len(s.identities) == 0 {
		return in, nil
	}
	return etcdsnap.Decrypt(in, s.identities...)
}

func (s *snapshotFile) close() {
	_ = s.file.Close() // it was read
	if s.fetched != "" {
		_ = os.RemoveAll(s.fetched)
	}
}

// openSnapshot opens a file for a restore, and says what it is.
func (g *globals) openSnapshot(ctx context.Context, r *remote, path string, o savedSnapshot) (_ *snapshotFile, _ *api.EtcdSnapshot, err error) {
	s := &snapshotFile{}
	defer func() {
		if err != nil && s.fetched != "" {
			_ = os.RemoveAll(s.fetched)
		}
	}()
	if o.bucket != "" {
		if s.fetched, err = os.MkdirTemp("", "imagectl-restore-*"); err != nil { // mode 0700; it is encrypted
			return nil, nil, err
		}
		if path, err = g.fetchSnapshot(ctx, o.bucket, path, s.fetched); err != nil {
			return nil, nil, err
		}
	}
	_, saved := files.Etcd.Named(filepath.Base(path), 0)
	switch {
	case saved && o.identity == "":
		return nil, nil, usageError{fmt.Errorf("%s was saved by the server, and is encrypted; name the recovery key with --identity", path)}
	case o.identity != "":
		if s.identities, err = readIdentities(o.identity); err != nil {
			return nil, nil, err
		}
	}
	if s.file, err = os.Open(path); err != nil {
		return nil, nil, err
	}
	from, err := s.check(path, r, o)
	if err != nil {
		_ = s.file.Close()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, from, nil
}

func (s *snapshotFile) check(path string, r *remote, o savedSnapshot) (*api.EtcdSnapshot, error) {
	in, err := s.read()
	if err != nil {
		return nil, err
	}
	from, err := checkSnapshot(in)
	if err != nil || o.identity == "" || o.unsigned {
		return from, err
	}
	m, err := os.Open(path + etcdsnap.ManifestEnd)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not beside it, so nobody knows who made it: anybody can encrypt something to a recovery key; --unsigned takes it all the same", filepath.Base(path)+etcdsnap.ManifestEnd)
	}
	if err != nil {
		return nil, err
	}
	defer m.Close()
	manifest, err := etcdsnap.ReadManifest(m)
	if err != nil {
		return nil, err
	}
	if err := manifest.Check(r.signers(), r.Cluster, filepath.Base(path)); err != nil {
		return nil, err
	}
	if manifest.SHA256 != from.GetSha256() || uint64(manifest.Size) != from.GetSize() {
		return nil, fmt.Errorf("its SHA-256 is %s, and the server saved %s under this name", from.GetSha256(), manifest.SHA256)
	}
	return from, nil
}

// fetchSnapshot brings a snapshot and its manifest out of a bucket.
func (g *globals) fetchSnapshot(ctx context.Context, bucket, name, dir string) (string, error) {
	place, err := g.backupBucket(bucket, snapshotPrefix, files.Etcd)
	if err != nil {
		return "", err
	}
	all, err := place.List(ctx)
	if err != nil {
		return "", err
	}
	f, err := files.Choose(all, filepath.Base(name), place.String())
	if err != nil {
		return "", err
	}
	for _, name := range []string{f.Name, f.Name + etcdsnap.ManifestEnd} {
		in, err := place.Open(ctx, files.File{Name: name})
		if err != nil {
			return "", err
		}
		out, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			_, err = io.Copy(out, in)
			err = errors.Join(err, out.Close())
		}
		if err := errors.Join(err, in.Close()); err != nil {
			return "", fmt.Errorf("fetching %s of %s: %w", name, place, err)
		}
	}
	return filepath.Join(dir, f.Name), nil
}
