package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/store"
)

func newVerify(g *globals) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "verify [DIR]",
		Short: "Compare what was built with its manifest",
		Long: "Read every artefact that DIR/manifest.json lists and compare size and digest.\n" +
			"DIR is out by default. The exit code is 1 when one differs or is missing.",
		Example: "  imagectl verify\n  imagectl verify /srv/images -o json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("verify takes one directory, got %d; see %s --help", len(args), cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return usageError{fmt.Errorf("output format %q is not known; -o json is", output)}
			}
			dir := "out"
			if len(args) == 1 {
				dir = args[0]
			}
			m, err := store.ReadManifest(dir)
			if errors.Is(err, fs.ErrNotExist) {
				return usageError{fmt.Errorf("%w; run imagectl build", err)}
			}
			if err != nil {
				return err
			}
			p := newProgress(g.stdio.Err)
			checks := verifyAll(cmd.Context(), dir, m, p)
			p.close()
			if output == "json" {
				err = writeJSON(g.stdio.Out, checks)
			} else {
				err = printChecks(g.stdio.Out, checks)
			}
			if err != nil {
				return err
			}
			if bad := countBad(checks); bad > 0 {
				return fmt.Errorf("%d of %s in %s are not what was built; build them again with imagectl build", bad, count(len(checks), "artefact"), dir)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "output format: json")
	return cmd
}

// check is the finding on one artefact; Problem is empty when it is good.
type check struct {
	Name    string `json:"name"`
	SHA256  string `json:"sha256"`
	Problem string `json:"problem,omitempty"`
}

func verifyAll(ctx context.Context, dir string, m store.Manifest, p *progress) []check {
	checks := []check{}
	for _, a := range m.Artefacts {
		p.step("reading "+a.Name, 0, a.Size)
		checks = append(checks, check{Name: a.Name, SHA256: a.SHA256, Problem: verifyOne(ctx, filepath.Join(dir, a.Name), a)})
	}
	return checks
}

func verifyOne(ctx context.Context, path string, a store.Artefact) string {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "it is missing"
	}
	if err != nil {
		return err.Error()
	}
	if st.Size() != a.Size {
		return fmt.Sprintf("it has %d bytes, want %d", st.Size(), a.Size)
	}
	got, _, err := store.HashFile(ctx, path)
	if err != nil {
		return err.Error()
	}
	if got != a.SHA256 {
		return fmt.Sprintf("its sha256 is %s, want %s", got, a.SHA256)
	}
	return ""
}

func printChecks(w io.Writer, checks []check) error {
	for _, c := range checks {
		what := "good"
		if c.Problem != "" {
			what = "BAD "
		}
		if _, err := fmt.Fprintf(w, "%s  %s", what, c.Name); err != nil {
			return err
		}
		if c.Problem != "" {
			fmt.Fprintf(w, ": %s", c.Problem)
		}
		fmt.Fprintln(w)
	}
	return nil
}

func countBad(checks []check) int {
	n := 0
	for _, c := range checks {
		if c.Problem != "" {
			n++
		}
	}
	return n
}
