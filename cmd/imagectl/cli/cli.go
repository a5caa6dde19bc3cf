// Package cli is the imagectl command line: one file per verb. It is the only
// package that knows every stage, and it wires them together.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"
)

// Exit codes of every verb; upload adds more.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// codedError is one with an exit code of its own.
type codedError struct {
	code int
	err  error
}

func (e codedError) Error() string { return e.err.Error() }
func (e codedError) Unwrap() error { return e.err }

// Stdio is where a run reads and writes. Data goes to Out, progress and errors
// to Err.
type Stdio struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// usageError marks wrong usage or invalid input: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// reportedError marks an error whose text was printed already.
type reportedError struct{ err error }

func (e reportedError) Error() string { return e.err.Error() }
func (e reportedError) Unwrap() error { return e.err }

// Main runs one command and returns its exit code. It never exits the process.
func Main(ctx context.Context, stdio Stdio, args []string) int {
	root := newRoot(stdio)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	var reported reportedError
	if !errors.As(err, &reported) {
		// What another machine said may be in it.
		fmt.Fprintf(stdio.Err, "imagectl: %s\n", text(err.Error()))
	}
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	var coded codedError
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitFailed
}

// globals are the flags that every verb takes.
type globals struct {
	stdio Stdio
	// file is the path of cluster.yaml.
	file string
	// cluster is which one client verbs are about; empty for that of file.
	cluster string
	// warned are the warnings that were printed: most verbs read cluster.yaml more than once.
	warned sync.Map
}

func newRoot(stdio Stdio) *cobra.Command {
	g := &globals{stdio: stdio}
	root := &cobra.Command{
		Use:           "imagectl",
		Short:         "Build, boot and bootstrap immutable Flatcar Kubernetes nodes",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see imagectl --help", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	root.SetIn(stdio.In)
	root.SetOut(stdio.Out)
	root.SetErr(stdio.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.PersistentFlags().StringVarP(&g.file, "file", "f", "cluster.yaml", "cluster file")
	root.PersistentFlags().StringVar(&g.cluster, "cluster", "", "`name` of the cluster to call, of those in the context file (default that of cluster.yaml where it is, or the only one)")
	root.AddCommand(verbs(g)...)
	return root
}
