package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/diff"
)

func newDiff(g *globals) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Say in words what changed between two builds",
		Long: "Compare two output directories by the documents in them: versions, inputs,\n" +
			"software, extensions, kernel arguments, and the units, files and users that\n" +
			"Ignition makes. A and B are directories, manifests, or artefacts, which select\n" +
			"their role. Of text that changed the lines are shown. Images are not read; imagectl\n" +
			"verify tells whether the documents are true. Differences do not change the exit code.",
		Example: "  imagectl diff out.last out\n  imagectl diff -o json out.last/manifest.json out",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("diff takes two builds, got %d; see %s --help", len(args), cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return usageError{fmt.Errorf("output format %q is not known; -o json is", output)}
			}
			a, errA := diff.Read(args[0])
			b, errB := diff.Read(args[1])
			if err := errors.Join(errA, errB); errors.Is(err, diff.ErrNoBuild) {
				return usageError{err}
			} else if err != nil {
				return err
			}
			changes, err := diff.Compare(a, b)
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(g.stdio.Out, append([]diff.Change{}, changes...))
			}
			return printChanges(g.stdio.Out, changes)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "output format: json")
	return cmd
}

func printChanges(w io.Writer, changes []diff.Change) error {
	if len(changes) == 0 {
		_, err := fmt.Fprintln(w, "no changes")
		return err
	}
	for _, c := range changes {
		if _, err := fmt.Fprintf(w, "%s: %s\n", cmp.Or(c.Role, "build"), c); err != nil {
			return err
		}
		for _, line := range c.Lines {
			if _, err := fmt.Fprintf(w, "    %s\n", line); err != nil {
				return err
			}
		}
	}
	if !diff.OnlyProgram(changes) {
		return nil
	}
	same := "what it built is the same, byte by byte"
	if len(changes) > 1 {
		same = "cluster.yaml, what it names and imagectl.lock are the same"
	}
	_, err := fmt.Fprintf(w, "only imagectl itself changed: %s\n", same)
	return err
}
