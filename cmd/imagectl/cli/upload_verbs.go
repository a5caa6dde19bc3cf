package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// wants checks how many arguments a verb has.
func wants(what string, least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usageError{fmt.Errorf("%s wants %s, got %s; see %s --help", cmd.Name(), what, count(len(args), "argument"), cmd.CommandPath())}
		}
		return nil
	}
}

// verbLimit is how long a verb may take that sends and reads no image.
const verbLimit = 10 * time.Minute

// at runs f with the target of a name.
func (g *globals) at(ctx context.Context, name string, limit time.Duration, f func(context.Context, destination, upload.Target) error) error {
	d, err := g.destination(name)
	if err != nil {
		return err
	}
	ctx, cancel := withLimit(ctx, "the time limit of", limit)
	defer cancel()
	t, stop, err := g.target(ctx, d, nil)
	if err != nil {
		return err
	}
	defer stop()
	return uploadError(f(ctx, d, t))
}

// familyOf is the family's name of a role.
func (g *globals) familyOf(role string) (string, error) {
	spec, err := g.spec()
	if err != nil {
		return "", err
	}
	var names []string
	for _, r := range spec.Roles {
		if r.Name == role {
			return spec.Name + "-" + role, nil
		}
		names = append(names, r.Name)
	}
	return "", usageError{fmt.Errorf("there is no role %q in %s; roles are %s", role, g.file, strings.Join(names, ", "))}
}

func newUploadList(g *globals) *cobra.Command {
	var o format
	cmd := &cobra.Command{
		Use:     "list TARGET [ROLE]",
		Short:   "Show what imagectl has put on a platform",
		Example: "  imagectl upload list one\n  imagectl upload list one worker -o json",
		Args:    wants("a target and perhaps a role", 1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			family := ""
			if len(args) == 2 {
				var err error
				if family, err = g.familyOf(args[1]); err != nil {
					return err
				}
			}
			return g.at(cmd.Context(), args[0], verbLimit, func(ctx context.Context, _ destination, t upload.Target) error {
				all, err := t.List(ctx, family)
				if err != nil {
					return fmt.Errorf("listing %s: %w", args[0], err)
				}
				if o == formatJSON {
					return writeJSON(g.stdio.Out, append([]upload.Object{}, all...))
				}
				var rows [][]string
				for _, o := range all {
					rows = append(rows, []string{o.Name, o.Version, o.ID, role(o), o.State, o.Created.Format(time.DateTime), o.Digest})
				}
				return table(g.stdio.Out, []string{"NAME", "VERSION", "ID", "IS", "STATE", "CREATED (UTC)", "DIGEST"}, rows)
			})
		},
	}
	formatFlag(cmd, &o)
	return cmd
}

// role is what an object is to its family.
func role(o upload.Object) string {
	switch {
	case o.Current:
		return "current"
	case o.Broken:
		return "broken"
	case o.Previous:
		return "previous"
	}
	return ""
}

func newUploadPromote(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "promote TARGET REF",
		Short:   "Make an uploaded image what its role's template starts",
		Long:    "Make an uploaded image what its role's template starts. REF is an ID, a version or\nthe beginning of a digest. Machines that run are not touched.",
		Example: "  imagectl upload promote one 4593.2.1-1a2b3c4d",
		Args:    wants("a target and an image", 2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.at(cmd.Context(), args[0], verbLimit, func(ctx context.Context, d destination, t upload.Target) error {
				o, err := upload.Find(ctx, t, "", args[1])
				if err != nil {
					return err
				}
				what := "is current now"
				if o.Current {
					what = "is current, as before"
					stale, err := upload.Stale(ctx, t, o)
					if err != nil {
						return err
					}
					if stale {
						what = "is current, as before, and its template has the options of now"
					}
				}
				if err := t.Promote(ctx, o); err != nil {
					return fmt.Errorf("promoting %s %s: %w", o.Name, o.Version, err)
				}
				_, err = fmt.Fprintf(g.stdio.Out, "%s %s (%s) %s on %s\n", o.Name, o.Version, o.ID, what, d.Name)
				return err
			})
		},
	}
}

func newUploadRollback(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "rollback TARGET ROLE",
		Short:   "Make current again what was so before",
		Example: "  imagectl upload rollback one worker",
		Args:    wants("a target and a role", 2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			family, err := g.familyOf(args[1])
			if err != nil {
				return err
			}
			return g.at(cmd.Context(), args[0], verbLimit, func(ctx context.Context, d destination, t upload.Target) error {
				from, to, err := upload.Rollback(ctx, t, family)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(g.stdio.Out, "%s: %s (%s) is current again on %s instead of %s (%s)\n", family, to.Version, to.ID, d.Name, from.Version, from.ID)
				return err
			})
		},
	}
}

func newUploadPrune(g *globals) *cobra.Command {
	var o format
	var keep int
	var dry, yes bool
	cmd := &cobra.Command{
		Use:   "prune TARGET ROLE",
		Short: "Delete old images of a role from a platform",
		Long: "Delete all images of a role but the newest. What is current, what rollback goes\n" +
			"back to and what is in use stays. Without --yes it shows what would be deleted and asks.",
		Example: "  imagectl upload prune one worker --keep 3 --dry-run\n  imagectl upload prune one worker --keep 3 --yes",
		Args:    wants("a target and a role", 2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if keep < 1 {
				return usageError{fmt.Errorf("--keep %d: at least 1 is kept", keep)}
			}
			family, err := g.familyOf(args[1])
			if err != nil {
				return err
			}
			return g.at(cmd.Context(), args[0], verbLimit, func(ctx context.Context, _ destination, t upload.Target) error {
				agree := func(would []upload.Pruned) error {
					if err := printPruned(g, formatTable, would, "would be deleted"); err != nil {
						return err
					}
					fmt.Fprint(g.stdio.Err, "Delete them? Type yes: ")
					answer, err := readLine(ctx, g.stdio.In)
					if err != nil {
						return fmt.Errorf("reading the answer: %w", err)
					}
					if strings.TrimSpace(answer) != "yes" {
						return fmt.Errorf("nothing was deleted: the answer was not yes")
					}
					return nil
				}
				if yes {
					agree = nil
				}
				got, err := upload.Prune(ctx, t, family, keep, dry, agree)
				if err != nil && got == nil {
					return err
				}
				word := "deleted"
				if dry {
					word = "would be deleted"
				}
				if perr := printPruned(g, o, got, word); perr != nil {
					return perr
				}
				return err
			})
		},
	}
	cmd.Flags().IntVar(&keep, "keep", 3, "how many of the newest to keep")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be deleted, and delete nothing")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	formatFlag(cmd, &o)
	return cmd
}

func printPruned(g *globals, o format, all []upload.Pruned, word string) error {
	if o == formatJSON {
		return writeJSON(g.stdio.Out, append([]upload.Pruned{}, all...))
	}
	var rows [][]string
	for _, p := range all {
		what := "kept"
		if p.Deleted {
			what = word
		}
		rows = append(rows, []string{p.Object.Version, p.Object.ID, what, p.Reason})
	}
	return table(g.stdio.Out, []string{"VERSION", "ID", "WHAT", "WHY"}, rows)
}

func newUploadCleanup(g *globals) *cobra.Command {
	var o format
	cmd := &cobra.Command{
		Use:   "cleanup TARGET",
		Short: "Remove what broken uploads left on a platform",
		Long: "Remove what broken uploads left on a platform: what they wrote down on this\n" +
			"machine before they made it, and images of ours that the platform calls broken.\n" +
			"Finished images and uploads that run are not touched. What was left where\n" +
			"cluster.yaml described the target in another way is named, and stays.",
		Example: "  imagectl upload cleanup one",
		Args:    wants("a target", 1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			state, err := uploadState()
			if err != nil {
				return err
			}
			return g.at(cmd.Context(), args[0], verbLimit, func(ctx context.Context, d destination, t upload.Target) error {
				done, err := upload.Cleanup(ctx, t, state, d.key())
				others, oerr := upload.Others(state, d.Name, d.key())
				if oerr != nil {
					return errors.Join(err, oerr)
				}
				for _, other := range others {
					fmt.Fprintln(g.stdio.Err, text(otherJournal(d, other)))
				}
				switch {
				case o == formatJSON:
					if perr := writeJSON(g.stdio.Out, append([]upload.Cleaned{}, done...)); perr != nil {
						return perr
					}
				case len(done) == 0 && err == nil && len(others) > 0:
					fmt.Fprintf(g.stdio.Out, "%s: nothing was left there, as cluster.yaml describes it now\n", d.Name)
				case len(done) == 0 && err == nil:
					fmt.Fprintf(g.stdio.Out, "%s: nothing was left\n", d.Name)
				default:
					for _, c := range done {
						what := "is gone"
						if c.Error != "" {
							what = c.Error
						}
						fmt.Fprintln(g.stdio.Out, text(strings.TrimSpace(c.Kind+" "+c.Name+" "+c.ID)+": "+what))
					}
				}
				return err
			})
		},
	}
	formatFlag(cmd, &o)
	return cmd
}

// otherJournal says what is left elsewhere, and how to get at it.
func otherJournal(d destination, o upload.Other) string {
	var things []string
	for _, l := range o.Left {
		things = append(things, strings.TrimSpace(l.Kind+" "+l.Name+" "+l.ID))
	}
	place := o.Place
	if place == "" {
		place = "unknown: an older imagectl wrote it"
	}
	return fmt.Sprintf("%s: %s is of a target of this name elsewhere (%s) and may have left there: %s; describe the target so again and run cleanup, or delete the file once that is gone", d.Name, o.Path, place, strings.Join(things, ", "))
}

func newUploadVerify(g *globals) *cobra.Command {
	var o format
	var out string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "verify TARGET REF",
		Short: "Compare an image on a platform with what was built",
		Long: "Compare an image on a platform with what was built, by its labels and by what the\n" +
			"platform itself can prove of its bytes. What it cannot prove is said. The exit code\n" +
			"is 1 when something differs, and 2 when another version was built here. REF is an ID,\n" +
			"a version or the beginning of a digest.",
		Example: "  imagectl upload verify one 4593.2.1-1a2b3c4d",
		Args:    wants("a target and an image", 2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.verifyUploaded(cmd.Context(), args[0], args[1], out, limit, o)
		},
	}
	cmd.Flags().StringVar(&out, "out", "out", "directory that imagectl build wrote")
	cmd.Flags().DurationVar(&limit, "timeout", verifyLimit, "how long all may take; from some platforms the whole disk is read back")
	formatFlag(cmd, &o)
	return cmd
}

// verifyLimit is how long reading a disk back from a platform may take.
const verifyLimit = time.Hour

// verifyUploaded compares an image on a platform with what was built in out.
func (g *globals) verifyUploaded(ctx context.Context, target, ref, out string, limit time.Duration, o format) error {
	return g.at(ctx, target, limit, func(ctx context.Context, d destination, t upload.Target) error {
		object, err := upload.Find(ctx, t, "", ref)
		if err != nil {
			return err
		}
		m, err := store.ReadManifest(out)
		if err != nil {
			return usageError{err}
		}
		// Other roles may have been built for something else than this platform.
		role, ours := strings.CutPrefix(object.Name, m.Cluster+"-")
		if !ours {
			return usageError{fmt.Errorf("%s has no image of %s to compare %s with: it is of cluster %s", out, object.Name, object.ID, m.Cluster)}
		}
		a, found := find(m, role, t.Formats())
		if found && versionOf(m, a) != object.Version {
			// What differs then says nothing of what was uploaded.
			return usageError{fmt.Errorf("%s holds %s %s, and there is nothing to compare %s with: build that one again, from its commit and lock file, or give --out", out, object.Name, versionOf(m, a), object.Version)}
		}
		images, err := g.images(ctx, t.Formats(), out, "", []string{role})
		if err != nil {
			return err
		}
		defer images[0].File.Close()
		checks, err := t.Verify(ctx, object, images[0])
		if err != nil {
			return fmt.Errorf("verifying %s: %w", object.ID, err)
		}
		return printUploadChecks(g, o, d.Name, object, checks)
	})
}

func printUploadChecks(g *globals, o format, target string, object upload.Object, checks []upload.Check) error {
	bad := 0
	var rows [][]string
	for _, c := range checks {
		if c.Result == upload.Bad {
			bad++
		}
		rows = append(rows, []string{string(c.Result), c.Name, c.Detail})
	}
	var err error
	if o == formatJSON {
		err = writeJSON(g.stdio.Out, checks)
	} else {
		err = table(g.stdio.Out, []string{"RESULT", "WHAT", "DETAIL"}, rows)
	}
	if err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%s %s on %s is not what was built: %s bad", object.Name, object.Version, target, count(bad, "check"))
	}
	return nil
}
