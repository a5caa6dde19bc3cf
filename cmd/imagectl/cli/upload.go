package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/stall"
)

// Exit codes of upload alone.
const (
	exitAuth    = 3
	exitSpace   = 4
	exitServer  = 5
	exitTimeout = 6
)

// uploadError gives an error of a target its exit code.
func uploadError(err error) error {
	for _, k := range []struct {
		kind error
		code int
	}{
		{upload.ErrAuth, exitAuth}, {upload.ErrSpace, exitSpace}, {upload.ErrTimeout, exitTimeout}, {upload.ErrServer, exitServer},
	} {
		if errors.Is(err, k.kind) {
			return codedError{k.code, err}
		}
	}
	return err
}

// uploadFlags are those of imagectl upload TARGET.
type uploadFlags struct {
	out, format string
	promote     bool
	dry         bool
	stage       stageFlags
	// stall is how long nothing may move; 0 for as long as it likes.
	timeout, stall time.Duration
}

func newUpload(g *globals) *cobra.Command {
	var f uploadFlags
	var o format
	cmd := &cobra.Command{
		Use:   "upload TARGET [ROLE...]",
		Short: "Upload images to a platform, as templates for virtual machines",
		Long: "Upload the image of each role to a platform. TARGET is the name of an entry of\n" +
			"upload: in cluster.yaml. What is there already, by the digest of the disk, is not\n" +
			"uploaded again. The first image of a role becomes current: it is what the\n" +
			"template of this role starts. Later ones do with --promote.\n\n" +
			"What an upload leaves if it breaks off is written down before it is made; the\n" +
			"next run goes on or removes it, and so does imagectl upload cleanup.\n\n" +
			"Exit codes: 0 done or there already, 1 failed, 2 wrong usage, 3 not allowed,\n" +
			"4 no space or quota, 5 the platform failed, 6 not done in time.",
		Example: "  imagectl build worker --format qcow2\n  imagectl upload one worker --dry-run\n  imagectl upload one worker --promote",
		Args:    atLeastTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.upload(cmd.Context(), f, o, args[0], args[1:])
		},
	}
	cmd.Flags().StringVar(&f.out, "out", "out", "directory that imagectl build wrote")
	cmd.Flags().StringVar(&f.format, "format", "", "format of the image (default the best that the platform takes and that was built)")
	cmd.Flags().BoolVar(&f.promote, "promote", false, "make the image what the role's template starts")
	cmd.Flags().BoolVar(&f.dry, "dry-run", false, "ask the platform, say what would be done, and change nothing")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 30*time.Minute, "how long all may take; what was begun then is kept for the next run")
	cmd.Flags().DurationVar(&f.stall, "stall", 5*time.Minute, "how long no byte may go to the platform and none come from it, a minute or more; 0 for no such limit")
	f.stage.flags(cmd)
	formatFlag(cmd, &o)
	cmd.AddCommand(newUploadList(g), newUploadPromote(g), newUploadRollback(g), newUploadPrune(g), newUploadCleanup(g), newUploadVerify(g))
	return cmd
}

// withLimit ends a context after a time, and says which limit that was.
func withLimit(ctx context.Context, name string, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s %s is over", name, limit))
}

// leastStall is the least that is longer than what clients wait between two tries.
const leastStall = time.Minute

// watched is a context that ends when nothing moves any more.
func watched(ctx context.Context, w *stall.Watch) (context.Context, func()) {
	if w == nil {
		return ctx, func() {}
	}
	clock := time.NewTicker(w.Every())
	ctx, stop := w.Start(ctx, clock.C)
	return ctx, func() {
		clock.Stop()
		stop()
	}
}

func atLeastTarget(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{fmt.Errorf("say where to: the name of an entry of upload: in cluster.yaml; see %s --help", cmd.CommandPath())}
	}
	return nil
}

// uploadReport is the JSON form of one image's end.
type uploadReport struct {
	Image   string          `json:"image"`
	Version string          `json:"version"`
	Plan    *upload.Plan    `json:"plan,omitempty"`
	Outcome *upload.Outcome `json:"outcome,omitempty"`
	Error   string          `json:"error,omitempty"`
}

func (g *globals) upload(ctx context.Context, f uploadFlags, o format, name string, roles []string) error {
	dest, err := g.destination(name)
	if err != nil {
		return err
	}
	if f.stall != 0 && f.stall < leastStall {
		return usageError{fmt.Errorf("--stall %s: want 0, for no limit, or %s and more: a platform that asks for patience gets half a minute", f.stall, leastStall)}
	}
	dest.watch = stall.New("--stall", f.stall)
	ctx, cancel := withLimit(ctx, "--timeout", f.timeout)
	defer cancel()
	f.stage.life = f.timeout
	spec, err := g.spec()
	if err != nil {
		return err
	}
	if err := fitsArch(dest, spec.Flatcar.Arch); err != nil {
		return err
	}
	fetch := &f.stage
	if f.dry {
		fetch = nil
	}
	t, stop, err := g.target(ctx, dest, fetch)
	if err != nil {
		return err
	}
	defer stop()
	images, err := g.images(ctx, t.Formats(), f.out, f.format, roles)
	if err != nil {
		return err
	}
	defer func() {
		for _, i := range images {
			i.File.Close()
		}
	}()
	state, err := uploadState()
	if err != nil {
		return err
	}
	forgetStart()
	var failed []error
	for _, img := range images {
		if err := g.uploadOne(ctx, f, o, dest, t, img, state); err != nil {
			failed = append(failed, err)
		}
	}
	return uploadError(errors.Join(failed...))
}

// uploadOne uploads one image, and says what came of it.
func (g *globals) uploadOne(ctx context.Context, f uploadFlags, o format, dest destination, t upload.Target, img upload.Image, state string) error {
	report := uploadReport{Image: img.Name, Version: img.Version}
	news := newNews(g.stdio, o, img)
	if f.dry {
		plan, err := t.Preflight(ctx, img)
		if err != nil {
			return fmt.Errorf("looking at %s: %w", dest.Name, err)
		}
		if plan.Found != nil && plan.Found.Current {
			if plan.Stale, err = upload.Stale(ctx, t, *plan.Found); err != nil {
				return err
			}
		}
		report.Plan = &plan
		return news.end(report, func() error { return printPlan(g.stdio.Out, dest.Name, img, plan, f.promote) })
	}
	j, err := upload.OpenJournal(state, upload.Key{Target: dest.key(), Place: dest.place(), Image: img})
	if err != nil {
		return err
	}
	ctx, stop := watched(ctx, dest.watch)
	defer stop()
	out, err := upload.Run(ctx, t, img, j, news.event, f.promote)
	left := len(j.Left())
	if cerr := j.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("closing the journal: %w", cerr))
	}
	said := func() error { return printOutcome(g.stdio.Out, dest.Name, out) }
	if out.Object.ID != "" {
		report.Outcome = &out
	} else {
		said = func() error { return nil }
	}
	if err != nil {
		report.Error = err.Error()
		if nerr := news.end(report, said); nerr != nil {
			return errors.Join(err, nerr)
		}
		if left > 0 {
			return fmt.Errorf("%w; what it left is written down: run the same again, or imagectl upload cleanup %s", err, dest.Name)
		}
		return err
	}
	return news.end(report, said)
}

// uploadState is where journals are kept (XDG Base Directory Specification).
func uploadState() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("finding where to keep upload journals: %w; set XDG_STATE_HOME", err)
		}
		dir = home + "/.local/state"
	}
	return dir + "/imagectl/uploads", nil
}
