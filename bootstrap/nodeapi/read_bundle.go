package nodeapi

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
)

const (
	recipientsMax = 16
	// partMax bounds one file of a bundle and bundleMax all of them, in bytes.
	partMax, bundleMax = 8 << 20, 64 << 20
	// journalLines and containerLines are how much a bundle has of logs.
	journalLines, containerLines = 5000, 200
	// bundleNamespace is the only one whose containers' logs are in a bundle: other
	// namespaces hold the data of whoever uses the cluster.
	bundleNamespace = "kube-system"
)

// Bundle implements apiconnect.NodeServiceHandler. What cannot be read is named in errors.txt
// of the archive; it never spoils the rest. It is encrypted here, so whoever passes it on reads
// nothing of it.
func (s *service) Bundle(ctx context.Context, req *connect.Request[api.BundleRequest], out *connect.ServerStream[api.BundleResponse]) error {
	to, err := recipients(req.Msg.GetRecipients())
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	leave, err := enter(s.gates.bundles, "make bundles")
	if err != nil {
		return err
	}
	defer leave()
	if err := s.record(ctx, "bundle-made", "for "+strings.Join(req.Msg.GetRecipients(), ", ")); err != nil {
		return err
	}
	w := &chunks{ctx: ctx, send: func(b []byte) error { return out.Send(&api.BundleResponse{Chunk: b}) }}
	sealed, err := age.Encrypt(w, to...)
	if err != nil {
		return ended(ctx, fmt.Errorf("encrypting the bundle: %w", err))
	}
	b := bundle{service: s, tar: tar.NewWriter(sealed), now: time.Now()}
	lines := min(req.Msg.GetJournalLines(), linesMax)
	if lines == 0 {
		lines = journalLines
	}
	err = b.write(ctx, int(lines))
	if err == nil {
		err = errors.Join(b.tar.Close(), sealed.Close())
	}
	if err == nil {
		err = w.flush()
	}
	return ended(ctx, err)
}

func recipients(all []string) ([]age.Recipient, error) {
	if len(all) == 0 || len(all) > recipientsMax {
		return nil, fmt.Errorf("a bundle takes 1 to %d recipients, not %d", recipientsMax, len(all))
	}
	var out []age.Recipient
	for _, r := range all {
		to, err := age.ParseX25519Recipient(r)
		if err != nil {
			return nil, fmt.Errorf("recipient %q: %w", cut(r, 100), err)
		}
		out = append(out, to)
	}
	return out, nil
}

// bundle is an archive in the making.
type bundle struct {
	*service
	tar    *tar.Writer
	now    time.Time
	size   int
	errors bytes.Buffer
}

// write makes all of it. An error is one of writing; what cannot be read goes into errors.txt.
func (b *bundle) write(ctx context.Context, lines int) error {
	system := b.node.System()
	version, health := b.node.Version(ctx), b.node.Health(ctx)
	units, err1 := system.Units(ctx, &api.UnitsRequest{})
	processes, err2 := system.Processes(ctx)
	disks, err3 := system.Disks(ctx)
	network, err4 := system.Network(ctx, &api.NetworkRequest{})
	clock, err5 := system.Time(ctx)
	containers, err6 := system.Containers()
	for _, p := range []struct {
		name string
		m    proto.Message
		err  error
	}{
		{"version.json", version, nil}, {"health.json", health, nil}, {"audit-heads.json", b.node.AuditHeads(), nil}, {"units.json", units, err1}, {"processes.json", processes, err2},
		{"disks.json", disks, err3}, {"network.json", network, err4}, {"time.json", clock, err5}, {"containers.json", containers, err6},
	} {
		var text []byte
		if p.err == nil {
			text, p.err = protojson.MarshalOptions{Multiline: true}.Marshal(p.m)
		}
		if err := b.add(p.name, text, p.err); err != nil {
			return err
		}
	}
	if err := b.logs(ctx, lines, containers); err != nil {
		return err
	}
	for _, pattern := range Files() {
		for _, name := range b.node.System().Match(pattern) {
			if !readable(name) {
				continue
			}
			text, err := read(b.node.System(), name)
			if err := b.add(path.Join("files", name), text, err); err != nil {
				return err
			}
		}
	}
	if b.errors.Len() == 0 {
		return nil
	}
	return b.add("errors.txt", b.errors.Bytes(), nil)
}

func (b *bundle) logs(ctx context.Context, lines int, containers *api.ContainersResponse) error {
	var text limited
	err := b.node.System().Dmesg(ctx, &api.DmesgRequest{}, func(m *api.DmesgResponse) error {
		return text.line("%s <%d> %s", m.GetAt().AsTime().Format(time.RFC3339Nano), m.GetLevel(), m.GetLine())
	})
	if err := b.add("dmesg.txt", text.b, err); err != nil {
		return err
	}
	text = limited{}
	err = b.node.Journal(ctx, Query{Lines: lines}, func(r io.Reader) error {
		return forward(r, func(m *api.LogsResponse) error {
			return text.line("%s %s: %s", m.GetAt().AsTime().Format(time.RFC3339Nano), m.GetUnit(), m.GetLine())
		})
	})
	if err := b.add("journal.txt", text.b, err); err != nil {
		return err
	}
	for _, c := range containers.GetContainers() {
		if c.GetNamespace() != bundleNamespace {
			continue
		}
		text = limited{}
		err := b.node.System().ContainerLogs(ctx, &api.ContainerLogsRequest{Namespace: c.GetNamespace(), Pod: c.GetPod(), Container: c.GetContainer(), Lines: containerLines}, func(m *api.ContainerLogsResponse) error {
			return text.line("%s %s %s", m.GetAt().AsTime().Format(time.RFC3339Nano), m.GetStream(), m.GetLine())
		})
		if err := b.add(path.Join("containers", c.GetNamespace(), c.GetPod(), c.GetContainer()+".txt"), text.b, err); err != nil {
			return err
		}
	}
	return nil
}

// add writes one file, cut off where it is too long, and notes why there is none or not all.
func (b *bundle) add(name string, text []byte, err error) error {
	if len(text) > partMax {
		text, err = text[:partMax], errors.Join(err, errFull)
	}
	if b.size+len(text) > bundleMax {
		text, err = nil, fmt.Errorf("left out: the bundle has %d bytes already", b.size)
	}
	if err != nil {
		fmt.Fprintf(&b.errors, "%s: %v\n", name, err)
	}
	if text == nil {
		return nil
	}
	b.size += len(text)
	if err := b.tar.WriteHeader(&tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: 0o600, Size: int64(len(text)), ModTime: b.now, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = b.tar.Write(text)
	return err
}

func read(s System, name string) ([]byte, error) {
	f, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, partMax+1))
}

// limited is text that stops to grow.
type limited struct{ b []byte }

var errFull = errors.New("it is cut off")

func (l *limited) line(format string, args ...any) error {
	if len(l.b) >= partMax {
		return errFull
	}
	l.b = append(fmt.Appendf(l.b, format, args...), '\n')
	return nil
}
