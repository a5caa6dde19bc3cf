package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"google.golang.org/protobuf/proto"
)

// Step is one idempotent change of the node. A list of them is run in order:
// observe, act if that is needed, observe again. What a step knows is on disk,
// written atomically, so that SIGKILL between any two system calls leaves a node
// that the next run continues.
type Step struct {
	// Name is stable: operators and tests see it.
	Name string
	// Observe says whether there is nothing to do, and if there is, what is
	// missing.
	Observe func(context.Context) (done bool, missing string, err error)
	// Act does it. A waiting error means that it is somebody else's turn.
	Act func(context.Context) error
}

// waiting is the reason why a step cannot go on yet through no fault of its own;
// one sentence.
type waiting string

func (w waiting) Error() string { return string(w) }

// outcome is what one run of a list did.
type outcome struct {
	steps []*api.StepStatus
	// changed are the steps that acted; empty on a second run.
	changed []string
	// done: every step is.
	done bool
}

// stopped is the first step that is not done; empty when all are.
func (o outcome) stopped() string {
	for _, s := range o.steps {
		if s.GetState() != api.StepStatus_STATE_DONE {
			return s.GetName()
		}
	}
	return ""
}

// runSteps runs a list up to the first step that is not done afterwards. before
// is what the last run ended with: a step that was done counts as done until it
// is found not to be, so that looking again is no news. lately says that the last run was
// a moment ago: then it goes on where that one ended. report is called with a
// copy whenever a step's state changes.
func runSteps(ctx context.Context, log *slog.Logger, steps []Step, before []*api.StepStatus, lately bool, report func([]*api.StepStatus)) outcome {
	var out outcome
	for _, s := range steps {
		status := &api.StepStatus{Name: s.Name, State: api.StepStatus_STATE_PENDING}
		for _, b := range before {
			if b.GetName() == s.Name && b.GetState() != api.StepStatus_STATE_RUNNING {
				status = proto.CloneOf(b)
			}
		}
		out.steps = append(out.steps, status)
	}
	set := func(i int, state api.StepStatus_State, detail string) {
		now := &api.StepStatus{Name: out.steps[i].GetName(), State: state, Detail: detail}
		if proto.Equal(out.steps[i], now) {
			return
		}
		out.steps[i] = now
		if state != api.StepStatus_STATE_DONE {
			// What comes after it is not known to be as it should be.
			for _, later := range out.steps[i+1:] {
				later.State, later.Detail = api.StepStatus_STATE_PENDING, ""
			}
		}
		report(clone(out.steps))
	}
	for i, s := range steps {
		if ctx.Err() != nil {
			return out
		}
		if lately = lately && out.steps[i].GetState() == api.StepStatus_STATE_DONE; lately {
			continue
		}
		done, missing, err := look(ctx, s, func() {
			if st := out.steps[i]; st.GetState() == api.StepStatus_STATE_PENDING && st.GetDetail() == "" {
				set(i, api.StepStatus_STATE_PENDING, slowLook)
			}
		})
		if err == nil && !done {
			set(i, api.StepStatus_STATE_RUNNING, missing)
			log.Info("acting", "step", s.Name, "because", missing)
			if err = s.Act(ctx); err == nil {
				out.changed = append(out.changed, s.Name)
				done, missing, err = s.Observe(ctx)
			}
		}
		var wait waiting
		switch {
		case errors.As(err, &wait):
			set(i, api.StepStatus_STATE_PENDING, wait.Error())
			return out
		case err != nil:
			if ctx.Err() == nil {
				log.Error("step failed", "step", s.Name, "err", err)
			}
			set(i, api.StepStatus_STATE_FAILED, err.Error())
			return out
		case !done:
			set(i, api.StepStatus_STATE_FAILED, "it acted, and still: "+missing)
			return out
		}
		set(i, api.StepStatus_STATE_DONE, "")
	}
	out.done = true
	return out
}

// lookPatience is how long a look at a step may take before it is told that it does.
const (
	lookPatience = 10 * time.Second
	slowLook     = "looking takes long: this node, or what it asks, is busy"
)

// look observes, and calls slow once if that takes longer than lookPatience.
func look(ctx context.Context, s Step, slow func()) (done bool, missing string, err error) {
	var mu sync.Mutex
	var over bool
	t := time.AfterFunc(lookPatience, func() {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			slow()
		}
	})
	done, missing, err = s.Observe(ctx)
	t.Stop()
	mu.Lock()
	defer mu.Unlock()
	over = true
	return done, missing, err
}

func clone(in []*api.StepStatus) []*api.StepStatus {
	out := make([]*api.StepStatus, len(in))
	for i, s := range in {
		out[i] = proto.CloneOf(s)
	}
	return out
}
