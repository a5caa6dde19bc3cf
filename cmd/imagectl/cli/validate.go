package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/diag"
)

func newValidate(g *globals) *cobra.Command {
	var output string
	var merged bool
	cmd := &cobra.Command{
		Use:   "validate [FILE FILE...]",
		Short: "Check cluster.yaml and everything it names",
		Long: "Check cluster.yaml, the file it extends and its Butane snippets. Every finding\n" +
			"is shown with its place, the line and what to write instead. The exit code is\n" +
			"2 when there is an error; warnings alone leave it 0. Nothing is fetched.\n\n" +
			"Several files are of clusters that one host or one network serves: each is checked,\n" +
			"and then what two of them cannot both have, such as machines, addresses and ranges.",
		Example: "  imagectl validate\n  imagectl validate --merged # what extends makes of it, and where each value stands\n  imagectl validate -f sites/zurich/cluster.yaml -o json | jq '.findings[].message'\n  imagectl validate prod/cluster.yaml lab/cluster.yaml",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return usageError{fmt.Errorf("validate takes several files or none; name one alone with -f %s", args[0])}
			}
			if len(args) > 1 && (merged || cmd.Flags().Changed("file")) {
				return usageError{errors.New("validate takes several files, or -f or --merged for one, not both")}
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
			if len(args) > 1 {
				return validateTogether(g, args, output)
			}
			spec, found := cluster.Parse(os.ReadFile, g.file)
			errs, warnings := found.Count()
			if output == "json" {
				return writeFindings(g, g.file, found)
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

// writeFindings prints them, and returns an error of exit code 2 when one of them is an error.
func writeFindings(g *globals, file string, found diag.List) error {
	errs, warnings := found.Count()
	if found == nil {
		found = diag.List{}
	}
	if err := g.printJSON(findings{File: file, Valid: errs == 0, Errors: errs, Warnings: warnings, Findings: found}); err != nil {
		return err
	}
	if err := found.Err(); err != nil {
		return usageError{reportedError{err}}
	}
	return nil
}

// validateTogether checks files of clusters that live side by side.
func validateTogether(g *globals, files []string, output string) error {
	specs, found := cluster.Together(os.ReadFile, files)
	if output == "json" {
		return writeFindings(g, strings.Join(files, " "), found)
	}
	errs, warnings := found.Count()
	if err := g.report(found); err != nil {
		fmt.Fprintf(g.stdio.Err, "%s together: %s, %s\n", strings.Join(files, " "), count(errs, "error"), count(warnings, "warning"))
		return err
	}
	var names []string
	for _, s := range specs {
		names = append(names, s.Name)
	}
	_, err := fmt.Fprintf(g.stdio.Out, "clusters %s are valid, and can be served side by side: %s\n", strings.Join(names, ", "), count(warnings, "warning"))
	return err
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
