package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
)

func newAudit(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "audit",
		Short:   "Read the log of who changed what, and check that nothing of it was changed",
		Example: "  imagectl audit ls\n  imagectl audit verify --head head.json",
		Args:    needVerb,
		RunE:    func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAuditLs(g), newAuditSignatures(g), newAuditVerify(g))
	return cmd
}

func newAuditLs(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the entries of the audit log, oldest first",
		Long: "List the entries of the audit log, oldest first. CALL is the beginning of a digest of the\n" +
			"call that an entry comes of, with all that it said: entries of one call have the same,\n" +
			"and so has the same call when it is made again. With -o json entries come as they are\n" +
			"kept, a line for each, with addresses, serial numbers and whole digests; imagectl audit\n" +
			"verify --log reads that.",
		Example: "  imagectl audit ls\n  imagectl audit ls -o json >audit.jsonl",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			w := bufio.NewWriter(g.stdio.Out)
			if f == formatJSON {
				for line, err := range r.auditLines(cmd.Context()) {
					if err != nil {
						return err
					}
					fmt.Fprintf(w, "%s\n", line)
				}
				return w.Flush()
			}
			var rows [][]string
			for e, err := range entries(r.auditLines(cmd.Context())) {
				if err != nil {
					return err
				}
				rows = append(rows, []string{strconv.FormatUint(e.tip.Seq, 10), e.Time.Local().Format(time.DateTime), e.who(), e.Action, e.Machine, e.call(), text(e.Result), e.what()})
			}
			if err := table(w, []string{"ENTRY", "TIME", "WHO", "WHAT", "MACHINE", "CALL", "RESULT", "DETAIL"}, rows); err != nil {
				return err
			}
			return w.Flush()
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func newAuditVerify(g *globals) *cobra.Command {
	var head, log, signatures string
	var nodes bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that no entry of the audit log was changed, removed or moved",
		Long: "Check the whole chain of the audit log on this machine: that no entry was changed,\n" +
			"removed or moved. That its end was cut off, or all of it made anew, shows only who\n" +
			"remembers an entry. Nodes do: each keeps the ends of the log that the server has\n" +
			"shown it, and is asked for them, past the server; control planes follow the log and\n" +
			"sign how far they came. With --log and --signatures nobody is asked. With --head, the last entry is\n" +
			"also written to a file, and at the next time it must still be there. Keep that file\n" +
			"where the server's administrators cannot write.",
		Example: "  imagectl audit verify\n  imagectl audit verify --nodes=false\n  imagectl audit verify --head head.json\n  imagectl audit verify --log audit.jsonl --signatures signatures.json --head head.json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			if signatures != "" && log == "" {
				return usageError{errors.New("--signatures goes with --log; without it the server and the nodes are asked for them")}
			}
			before, err := remembered(head)
			if err != nil {
				return err
			}
			var lines iter.Seq2[[]byte, error]
			var seen witnesses
			if log != "" {
				f, err := os.Open(log)
				if err != nil {
					return err
				}
				defer f.Close()
				lines = linesOf(f)
				if signatures != "" {
					if seen, err = g.readSignatures(signatures); err != nil {
						return err
					}
				}
			} else {
				r, err := g.dial()
				if err != nil {
					return err
				}
				// Before the log is read: it goes on meanwhile.
				if nodes {
					if seen, err = r.askWitnesses(cmd.Context()); err != nil {
						return err
					}
				}
				lines = r.auditLines(cmd.Context())
			}
			return g.verifyAudit(lines, head, before, seen)
		},
	}
	cmd.Flags().StringVar(&head, "head", "", "`file` that remembers the last entry from one time to the next")
	cmd.Flags().BoolVar(&nodes, "nodes", true, "ask nodes what the server has shown them")
	cmd.Flags().StringVar(&signatures, "signatures", "", "`file` of imagectl audit signatures -o json to check --log with")
	cmd.Flags().StringVar(&log, "log", "", "`file` of imagectl audit ls -o json to check, instead of the server's log")
	return cmd
}

// memory is what a file remembers: the last entry, and the keys of those who signed the log,
// by node.
type memory struct {
	audit.Tip
	Keys map[string]string `json:"keys,omitempty"`
	// KeysSeq is the entry up to which the keys were compared with the log; 0 for the last.
	KeysSeq uint64 `json:"keysSeq,omitempty"`
}

// remembered reads the entry that a file remembers; the zero value where there is no
// file yet. It comes before anything is asked of the server.
func remembered(head string) (memory, error) {
	var before memory
	if head == "" {
		return before, nil
	}
	b, err := os.ReadFile(head)
	if errors.Is(err, fs.ErrNotExist) {
		// It will be written, so there has to be a place for it.
		_, err := os.Stat(filepath.Dir(head))
		return before, err
	}
	if err != nil {
		return before, err
	}
	if err := json.Unmarshal(b, &before); err != nil {
		return before, fmt.Errorf("reading %s: %w", head, err)
	}
	if before.Seq == 0 || before.Hash == "" {
		return before, fmt.Errorf("reading %s: it remembers no entry; bring a copy of it, or remove it to begin anew", head)
	}
	return before, nil
}

// verifyAudit checks a chain and that it holds the entry that was remembered.
func (g *globals) verifyAudit(lines iter.Seq2[[]byte, error], head string, before memory, seen witnesses) error {
	nodes := judge{witnesses: seen, remembered: before.Keys, since: cmp.Or(before.KeysSeq, before.Seq)}
	var tip audit.Tip
	for e, err := range entries(lines) {
		if err != nil {
			return err
		}
		nodes.entry(e)
		if tip = e.tip; tip.Seq == before.Seq && tip != before.Tip {
			return fmt.Errorf("entry %d is another one (%.12s…) than %s remembers (%.12s…): the log was made anew, or the server was restored from a backup of before it", tip.Seq, tip.Hash, head, before.Hash)
		}
	}
	if tip.Seq < before.Seq {
		return fmt.Errorf("the log ends with entry %d, and %s remembers entry %d: its end was cut off, or the server was restored from a backup of before it", tip.Seq, head, before.Seq)
	}
	fmt.Fprintf(g.stdio.Out, "%d entries, unbroken; the last is %s\n", tip.Seq, tip.Hash)
	said, broken := nodes.sentences(tip)
	for _, s := range said {
		fmt.Fprintln(g.stdio.Out, text(s))
	}
	if broken {
		return errors.New("this is not the log that nodes were shown and have signed")
	}
	if head == "" {
		return nil
	}
	if before.Seq == 0 {
		fmt.Fprintf(g.stdio.Out, "%s is new: nothing was compared with it, and it remembers entry %d from now on\n", head, tip.Seq)
	} else {
		fmt.Fprintf(g.stdio.Out, "entry %d is the one that %s remembers\n", before.Seq, head)
	}
	b, err := json.Marshal(nodes.memory(tip))
	if err != nil {
		return err
	}
	if err := writePrivate(filepath.Clean(head), append(b, '\n')); err != nil {
		return fmt.Errorf("writing %s: %w", head, err)
	}
	return nil
}

// auditLines reads the server's log.
func (r *remote) auditLines(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		stream, err := r.operator().ReadAudit(ctx, connect.NewRequest(&api.ReadAuditRequest{}))
		if err != nil {
			yield(nil, r.explain(err))
			return
		}
		defer stream.Close()
		for stream.Receive() {
			for _, line := range stream.Msg().GetLines() {
				if !yield(line, nil) {
					return
				}
			}
		}
		if err := stream.Err(); err != nil {
			yield(nil, r.explain(err))
		}
	}
}

func linesOf(f io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		s := bufio.NewScanner(f)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			if !yield(s.Bytes(), nil) {
				return
			}
		}
		if err := s.Err(); err != nil {
			yield(nil, err)
		}
	}
}

// auditEntry is an entry with its place in the chain.
type auditEntry struct {
	audit.Entry
	tip audit.Tip
}

// entries opens each line and checks that it follows the one before.
func entries(lines iter.Seq2[[]byte, error]) iter.Seq2[auditEntry, error] {
	return func(yield func(auditEntry, error) bool) {
		var e auditEntry
		for line, err := range lines {
			if err == nil {
				e.Entry, e.tip, err = audit.Open(e.tip, line)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// who is the subject without the cluster that all have in common.
func (e auditEntry) who() string {
	who := shortSubject(e.Actor.Subject)
	if who == "" {
		who = e.Actor.Source
	}
	return who
}

// shortSubject is one without the cluster that all have in common.
func shortSubject(subject string) string {
	if _, rest, ok := strings.Cut(strings.TrimPrefix(subject, "imagectl://"), "/"); ok {
		return rest
	}
	return subject
}

// call is how the digest of its call begins.
func (e auditEntry) call() string {
	const few = 8 // tells apart what one sees at a time
	return text(e.Arguments[:min(few, len(e.Arguments))])
}

func (e auditEntry) what() string {
	if e.Before == e.After {
		return text(e.Detail)
	}
	return text(strings.TrimSuffix(fmt.Sprintf("%s → %s: %s", e.Before, e.After, e.Detail), ": "))
}
