package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newNodeDmesg(g *globals) *cobra.Command {
	var f format
	var req api.DmesgRequest
	cmd := nodeVerb{
		use: "dmesg NODE", short: "The kernel's log", example: "  imagectl node dmesg w1 --follow",
		run: func(ctx context.Context, n *node, _ []string) error {
			levels := []string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
			s, err := n.Dmesg(ctx, connect.NewRequest(&req))
			return stream(ctx, n, "reading the kernel's log", s, err, func(m *api.DmesgResponse) error {
				if f == formatJSON {
					return printLine(g.stdio.Out, m)
				}
				if m.GetGap() {
					fmt.Fprintln(g.stdio.Out, "(the kernel has dropped some here)")
				}
				_, err := fmt.Fprintf(g.stdio.Out, "%s %-6s %s\n", moment(m.GetAt()), levels[m.GetLevel()&7], text(m.GetLine()))
				return err
			})
		},
	}.command(g)
	formatFlag(cmd, &f)
	cmd.Flags().BoolVar(&req.Follow, "follow", false, "go on as lines come")
	cmd.Flags().Uint32Var(&req.Lines, "lines", 0, "last N lines (default all that the kernel keeps)")
	return cmd
}

func newNodeLogs(g *globals) *cobra.Command {
	var f format
	var req api.ContainerLogsRequest
	var since time.Duration
	cmd := nodeVerb{
		use: "logs NODE [[NAMESPACE/]POD[/CONTAINER]]", short: "Containers' logs, or which containers have one",
		long: "Read a container's log out of kubelet's files, which also works while Kubernetes does\n" +
			"not; without a pod, list the containers that have one. The namespace is kube-system\n" +
			"when it is left out, and must be given where the container is. The journal is\n" +
			"imagectl logs.",
		example: "  imagectl node logs w1\n  imagectl node logs cp1 kube-apiserver-cp1 --since 10m\n  imagectl node logs w1 shop/db-0/postgres --follow", most: 1,
		run: func(ctx context.Context, n *node, args []string) error {
			if len(args) == 0 {
				resp, err := n.Containers(ctx, connect.NewRequest(&api.ContainersRequest{}))
				if err != nil {
					return n.explain("reading containers", err)
				}
				return printContainers(g.stdio, f, resp.Msg)
			}
			if err := podOf(args[0], &req); err != nil {
				return usageError{err}
			}
			if since > 0 {
				req.Since = timestamppb.New(time.Now().Add(-since))
			}
			s, err := n.ContainerLogs(ctx, connect.NewRequest(&req))
			return stream(ctx, n, "reading the log", s, err, func(m *api.ContainerLogsResponse) error {
				if f == formatJSON {
					return printLine(g.stdio.Out, m)
				}
				_, err := fmt.Fprintf(g.stdio.Out, "%s %s\n", moment(m.GetAt()), text(m.GetLine()))
				return err
			})
		},
	}.command(g)
	formatFlag(cmd, &f)
	cmd.Flags().BoolVar(&req.Follow, "follow", false, "go on as lines come, over restarts of the container")
	cmd.Flags().DurationVar(&since, "since", 0, "how far back, such as 10m")
	cmd.Flags().Uint32Var(&req.Lines, "lines", 0, "last N lines (default 100)")
	cmd.Flags().BoolVar(&req.Previous, "previous", false, "that of before the container's last start")
	return cmd
}

// podOf reads POD, NAMESPACE/POD or NAMESPACE/POD/CONTAINER.
func podOf(s string, req *api.ContainerLogsRequest) error {
	f := strings.Split(s, "/")
	switch len(f) {
	case 1:
		req.Namespace, req.Pod = "kube-system", f[0]
	case 2:
		req.Namespace, req.Pod = f[0], f[1]
	case 3:
		req.Namespace, req.Pod, req.Container = f[0], f[1], f[2]
	default:
		return fmt.Errorf("%q is none of POD, NAMESPACE/POD and NAMESPACE/POD/CONTAINER", s)
	}
	return nil
}

func printContainers(out Stdio, f format, m *api.ContainersResponse) error {
	if f == formatJSON {
		return printMessages(out.Out, m.GetContainers())
	}
	rows := [][]string{}
	for _, c := range m.GetContainers() {
		rows = append(rows, []string{c.GetNamespace(), c.GetPod(), c.GetContainer(), fmt.Sprint(c.GetRestarts()), bytesOf(c.GetLogSize()), moment(c.GetWritten())})
	}
	return table(out.Out, []string{"NAMESPACE", "POD", "CONTAINER", "RESTARTS", "LOG", "WRITTEN"}, rows)
}

func newNodeCat(g *globals) *cobra.Command {
	return nodeVerb{
		use: "cat NODE FILE", short: "A file of the list in docs/node-api.md", example: "  imagectl node cat w1 /proc/meminfo", least: 1, most: 1,
		run: func(ctx context.Context, n *node, args []string) error {
			s, err := n.ReadFile(ctx, connect.NewRequest(&api.ReadFileRequest{Path: args[0]}))
			return stream(ctx, n, "reading "+args[0], s, err, func(m *api.ReadFileResponse) error {
				if m.GetTruncated() {
					return fmt.Errorf("%s of %s is longer than what is read of a file; this is its begin", args[0], n.name)
				}
				_, err := g.stdio.Out.Write(m.GetChunk())
				return err
			})
		},
	}.command(g)
}

func newNodeCapture(g *globals) *cobra.Command {
	var req api.CaptureRequest
	var out string
	var duration time.Duration
	cmd := nodeVerb{
		use: "capture NODE LINK", short: "Record packets as a pcap file",
		long: "Record what passes a link of the node as a pcap file, which tcpdump and Wireshark\n" +
			"read, until one of the limits is reached. The connection that carries it is left\n" +
			"out. It shows what others send: the node's own log has who recorded what.",
		example: "  imagectl node capture w1 eth0 --protocol udp --port 53 --out dns.pcap\n  imagectl node capture w1 eth0 --seconds 10s --out - | tcpdump -r -", least: 1, most: 1,
		run: func(ctx context.Context, n *node, args []string) error {
			if out == "" {
				return usageError{errors.New("--out says which file the packets go to; - is standard output")}
			}
			req.Link = args[0]
			if duration < 0 || duration%time.Second != 0 {
				return usageError{fmt.Errorf("--seconds %s is not a number of whole seconds", duration)}
			}
			req.Seconds = uint32(duration / time.Second)
			var end *api.CaptureEnd
			err := toFile(g.stdio, out, func(w io.Writer) error {
				s, err := n.Capture(ctx, connect.NewRequest(&req))
				err = stream(ctx, n, "capturing on "+args[0], s, err, func(m *api.CaptureResponse) error {
					if m.GetEnd() != nil {
						end = m.GetEnd()
					}
					_, err := w.Write(m.GetChunk())
					return err
				})
				if err == nil && end == nil && ctx.Err() == nil {
					return errors.New("the capture broke off; what came is not all")
				}
				return err
			})
			if err != nil {
				return err
			}
			if end == nil {
				return ctx.Err()
			}
			fmt.Fprintf(g.stdio.Err, "%d packets, %d bytes, until the limit of %s; the kernel dropped %d\n", end.GetPackets(), end.GetBytes(), text(end.GetReason()), end.GetDropped())
			return nil
		},
	}.command(g)
	cmd.Flags().StringVar(&out, "out", "", "file to make; - is standard output")
	cmd.Flags().DurationVar(&duration, "seconds", 0, "how long, such as 10s (default 30s, at most 5m)")
	cmd.Flags().Uint32Var(&req.Packets, "packets", 0, "how many packets (default 10,000, at most 100,000)")
	cmd.Flags().Uint64Var(&req.Bytes, "bytes", 0, "how long a file (default 16 MiB, at most 64 MiB)")
	cmd.Flags().Uint32Var(&req.Snap, "snap", 0, "how much of each packet, in bytes (default all)")
	cmd.Flags().StringVar(&req.Protocol, "protocol", "", "only tcp, udp, icmp, arp, ip or ip6")
	cmd.Flags().StringVar(&req.Host, "host", "", "only from or to this IP address")
	cmd.Flags().Uint32Var(&req.Port, "port", 0, "only from or to this port")
	return cmd
}

func newNodeBundle(g *globals) *cobra.Command {
	var req api.BundleRequest
	var out string
	cmd := nodeVerb{
		use: "bundle NODE", short: "All of it as one encrypted archive, for whoever is to help",
		long: "Collect what the other verbs show, with the journal, the logs of kube-system and the\n" +
			"files of docs/node-api.md, as a tar archive that the node encrypts by age. Without\n" +
			"--recipient it is for a key of your own, made beside the context file the first time:\n" +
			"age --decrypt -i support.key FILE | tar -x.",
		example: "  imagectl node bundle w1\n  imagectl node bundle w1 --recipient age1... --out w1.tar.age",
		run: func(ctx context.Context, n *node, _ []string) error {
			if len(req.Recipients) == 0 {
				key, path, err := supportKey()
				if err != nil {
					return err
				}
				req.Recipients = []string{key}
				fmt.Fprintf(g.stdio.Err, "encrypted for the key in %s\n", path)
			}
			if out == "" {
				out = n.name + "-" + time.Now().Format("20060102-150405") + ".tar.age"
			}
			got := 0
			err := toFile(g.stdio, out, func(w io.Writer) error {
				s, err := n.Bundle(ctx, connect.NewRequest(&req))
				err = stream(ctx, n, "making the bundle", s, err, func(m *api.BundleResponse) error {
					got += len(m.GetChunk())
					_, err := w.Write(m.GetChunk())
					return err
				})
				return errors.Join(err, ctx.Err())
			})
			if err == nil {
				fmt.Fprintf(g.stdio.Err, "%s: %d bytes\n", out, got)
			}
			return err
		},
	}.command(g)
	cmd.Flags().StringArrayVar(&req.Recipients, "recipient", nil, "age recipient (age1...), may be repeated (default: a key of your own)")
	cmd.Flags().StringVar(&out, "out", "", "file to make; - is standard output (default NODE-TIME.tar.age)")
	cmd.Flags().Uint32Var(&req.JournalLines, "journal-lines", 0, "last N lines of the journal (default 5000, at most 10000)")
	return cmd
}

// supportKey is the age key beside the context file, made when there is none: its recipient,
// and where it lies.
func supportKey() (recipient, path string, err error) {
	context, err := contextPath()
	if err != nil {
		return "", "", err
	}
	path = filepath.Join(filepath.Dir(context), "support.key")
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		key, err := age.GenerateX25519Identity()
		if err != nil {
			return "", "", fmt.Errorf("making %s: %w", path, err)
		}
		if err := writePrivate(path, []byte(key.String()+"\n")); err != nil {
			return "", "", fmt.Errorf("making %s: %w", path, err)
		}
		return key.Recipient().String(), path, nil
	} else if err != nil {
		return "", "", err
	}
	defer f.Close()
	all, err := age.ParseIdentities(f)
	if err != nil {
		return "", "", fmt.Errorf("reading %s: %w", path, err)
	}
	for _, k := range all {
		if x, ok := k.(*age.X25519Identity); ok {
			return x.Recipient().String(), path, nil
		}
	}
	return "", "", fmt.Errorf("reading %s: it holds no X25519 key of age; give a --recipient", path)
}

// toFile has something written to a new file, readable by its owner only, which is there whole
// or not at all; "-" is standard output.
func toFile(out Stdio, name string, write func(io.Writer) error) (err error) {
	if name == "-" {
		return write(out.Out)
	}
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("%s is there already; move it away, or say another name with --out", name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
