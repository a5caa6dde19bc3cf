package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/diag"
)

func newValidate(g *globals) *cobra.Command {
	var output string
	var merged bool
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check cluster.yaml and everything it names",
		Long: "Check cluster.yaml, the file it extends and its Butane snippets. Every finding\n" +
			"is shown with its place, the line and what to write instead. The exit code is\n" +
			"2 when there is an error; warnings alone leave it 0. Nothing is fetched.",
		Example: "  imagectl validate\n  imagectl validate --merged # what extends makes of it, and where each value stands\n  imagectl validate -f sites/zurich/cluster.yaml -o json | jq '.findings[].message'",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("validate takes no arguments; name the file with -f %s", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return usageError{fmt.Errorf("output format %q is not known; -o json is", output)}
			}
			if merged {
				return printMerged(g, output)
			}
			spec, found := cluster.Parse(os.ReadFile, g.file)
			errs, warnings := found.Count()
			if output == "json" {
				if err := writeFindings(g, found, errs, warnings); err != nil {
					return err
				}
				if err := found.Err(); err != nil {
					return usageError{reportedError{err}}
				}
				return nil
			}
			if err := g.report(found); err != nil {
				fmt.Fprintf(g.stdio.Err, "%s: %s, %s\n", g.file, count(errs, "error"), count(warnings, "warning"))
				return err
			}
			_, err := fmt.Fprintf(g.stdio.Out, "%s: cluster %s is valid: %s, %s, %s\n", g.file, spec.Name,
				count(len(spec.Machines), "machine"), count(len(spec.Roles), "role"), count(warnings, "warning"))
			return err
		},
	}
	cmd.Flags().BoolVar(&merged, "merged", false, "print the values of the file laid over what it extends, and where each stands, instead of checking them")
	cmd.Flags().StringVarP(&output, "output", "o", "", "output format: json")
	return cmd
}

// findings is the JSON form.
type findings struct {
	File     string    `json:"file"`
	Valid    bool      `json:"valid"`
	Errors   int       `json:"errors"`
	Warnings int       `json:"warnings"`
	Findings diag.List `json:"findings"`
}

func writeFindings(g *globals, found diag.List, errs, warnings int) error {
	if found == nil {
		found = diag.List{}
	}
	return g.printJSON(findings{File: g.file, Valid: errs == 0, Errors: errs, Warnings: warnings, Findings: found})
}

// printJSON is how verbs print data under -o json.
func (g *globals) printJSON(v any) error {
	enc := json.NewEncoder(g.stdio.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func printMerged(g *globals, output string) error {
	values, found := cluster.Merged(os.ReadFile, g.file)
	if err := g.report(found); err != nil {
		return err
	}
	if output == "json" {
		return g.printJSON(values)
	}
	table := tabwriter.NewWriter(g.stdio.Out, 0, 8, 2, ' ', 0)
	for _, v := range values {
		fmt.Fprintf(table, "%s\t%s\t%s\n", v.Path, v.Value, v.Pos)
	}
	return table.Flush()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
