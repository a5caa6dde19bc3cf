package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/evidence"
)

func newVerify(g *globals) *cobra.Command {
	var output, keyFile, cache, work string
	var rebuild bool
	cmd := &cobra.Command{
		Use:   "verify [DIR | TARGET REF]",
		Short: "Judge what was built by its manifest, checksums, provenance and SBOMs",
		Long: "Read every file that DIR/manifest.json lists and compare it with the manifest,\n" +
			"SHA256SUMS, the provenance and the bills of materials, offline. DIR is out by\n" +
			"default. With --key the provenance must be signed by that key: only then is it\n" +
			"known who built it. The exit code is 1 when a file differs or is missing.\n\n" +
			"With --rebuild, build everything again from cluster.yaml and imagectl.lock in a\n" +
			"temporary directory, with nothing taken from an earlier build but locked inputs,\n" +
			"whose digests are checked, and compare the bytes.\n\n" +
			"With two arguments it is imagectl upload verify TARGET REF: an image on a platform\n" +
			"is compared with what is in out. That one has more flags.",
		Example: "  imagectl verify\n  imagectl verify /srv/images --key sign.pub.pem -o json\n  imagectl verify --rebuild --work /var/tmp\n  imagectl verify one 4593.2.1-1a2b3c4d",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usageError{fmt.Errorf("verify takes one directory, or an upload target and an image, got %d arguments; see %s --help", len(args), cmd.CommandPath())}
			}
			if len(args) < 2 {
				return nil
			}
			for _, name := range []string{"rebuild", "work", "cache", "key"} {
				if cmd.Flags().Changed(name) {
					return usageError{fmt.Errorf("--%s judges a directory, and %s are an upload target and an image; see %s --help", name, strings.Join(args, " "), cmd.CommandPath())}
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return usageError{fmt.Errorf("output format %q is not known; -o json is", output)}
			}
			if len(args) == 2 {
				o := formatTable
				if output != "" {
					o = formatJSON
				}
				return g.verifyUploaded(cmd.Context(), args[0], args[1], "out", verifyLimit, o)
			}
			key, err := readVerifyKey(keyFile)
			if err != nil {
				return usageError{err}
			}
			dir := "out"
			if len(args) == 1 {
				dir = args[0]
			}
			p := newProgress(g.stdio.Err)
			checks, err := evidence.Verify(cmd.Context(), dir, evidence.Options{Key: key, Step: func(name string, size int64) { p.step("reading "+name, 0, size) }})
			p.close()
			if errors.Is(err, fs.ErrNotExist) {
				return usageError{fmt.Errorf("%w; run imagectl build", err)}
			}
			if err != nil {
				return err
			}
			var since []string
			if rebuild {
				if checks, since, err = g.rebuild(cmd.Context(), dir, cache, work, checks); err != nil {
					return err
				}
			}
			if output == "json" {
				err = writeJSON(g.stdio.Out, checks)
			} else {
				err = printChecks(g.stdio.Out, checks)
			}
			if err != nil {
				return err
			}
			if bad := countBad(checks); bad > 0 {
				return fmt.Errorf("%d of %s in %s are %s", bad, count(len(checks), "file"), dir, notWhat(rebuild, since))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "output format: json")
	cmd.Flags().BoolVar(&rebuild, "rebuild", false, "build everything again and compare the bytes")
	cmd.Flags().StringVar(&work, "work", "", "where --rebuild makes its temporary directory (default the system's)")
	cacheFlag(cmd, &cache)
	cmd.Flags().StringVar(&keyFile, "key", "", "public key (PEM) that must have signed the provenance")
	return cmd
}

func printChecks(w io.Writer, checks []evidence.Check) error {
	for _, c := range checks {
		what, why := "good", c.Note
		if c.Problem != "" {
			what, why = "BAD ", c.Problem
		}
		if why != "" {
			why = ": " + why
		}
		if _, err := fmt.Fprintf(w, "%s  %s%s\n", what, c.Name, why); err != nil {
			return err
		}
	}
	return nil
}

// notWhat ends the sentence about bad files with what to do. since is what
// changed since the build.
func notWhat(rebuild bool, since []string) string {
	switch {
	case !rebuild:
		return "not what was built; build them again with imagectl build"
	case len(since) == 0:
		return "not what a rebuild gives, and the provenance names the same cluster.yaml, imagectl.lock and imagectl: do not use them, build them again with imagectl build"
	}
	return "not what a rebuild gives; since they were built there is another " + strings.Join(since, ", ") + ": check out what they were built from, or build them again with imagectl build"
}

func countBad(checks []evidence.Check) int {
	n := 0
	for _, c := range checks {
		if c.Problem != "" {
			n++
		}
	}
	return n
}
