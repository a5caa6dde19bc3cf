package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// View is what "machines ls -o json" says of a machine: the fields of
// MachineView in the wire contract that the lab reads.
type View struct {
	Name        string `json:"name"`
	State       string `json:"state"`
	Reason      string `json:"reason"`
	PendingCode string `json:"pendingCode"`
	KeyConflict bool   `json:"keyConflict"`
	BootStage   string `json:"bootStage"`
	Address     string `json:"address"`
	Facts       struct {
		Interfaces []Card `json:"interfaces"`
	} `json:"facts"`
	Steps []struct {
		Name, State, Detail string
	} `json:"steps"`
}

// Card is a network card of a machine, with its addresses in CIDR form.
type Card struct {
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"`
}

// Views lists the machines by name.
func (l *Lab) Views(ctx context.Context) (map[string]View, error) {
	out, err := l.Imagectl(ctx, "machines", "ls", "-o", "json")
	if err != nil {
		return nil, err
	}
	var all []View
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("reading machines ls -o json: %w: %s", err, out)
	}
	views := map[string]View{}
	for _, v := range all {
		views[v.Name] = v
	}
	return views, nil
}

// codeOnConsole is how bootstrapd shows the enrolment code.
var codeOnConsole = regexp.MustCompile(`CODE +([0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4})$`)

// ReadCode waits for the enrolment code on a machine's console, as the person
// standing in front of it would.
func (l *Lab) ReadCode(ctx context.Context, m Machine, from int) (string, error) {
	groups, err := l.Guests[m.Name].Console.Wait(ctx, from, codeOnConsole)
	if err != nil {
		return "", fmt.Errorf("reading the code on %s: %w", m.Name, err)
	}
	return groups[1], nil
}

// Approve compares the code on the console with the one the server shows and
// approves the machine with the console's.
func (l *Lab) Approve(ctx context.Context, m Machine) error {
	code, err := l.ReadCode(ctx, m, 0)
	if err != nil {
		return err
	}
	if err := Until(ctx, func() (bool, string, error) {
		views, err := l.Views(ctx)
		if err != nil {
			return false, err.Error(), l.died()
		}
		shown := views[m.Name].PendingCode
		if shown != "" && shown != code {
			return false, "", fmt.Errorf("the console of %s shows %s, the server shows %s: somebody is in between", m.Name, code, shown)
		}
		return shown == code, fmt.Sprintf("waiting for %s to ask for approval", m.Name), nil
	}); err != nil {
		return err
	}
	_, err = l.Imagectl(ctx, "machines", "approve", m.Name, "--code", m.Name+"="+code)
	return err
}

// Active are the machines that become nodes.
func (l *Lab) Active() []Machine {
	var out []Machine
	for _, m := range l.Machines {
		if !m.Idle {
			out = append(out, m)
		}
	}
	return out
}

// Form takes a rack of empty machines to a Ready cluster.
func (l *Lab) Form(ctx context.Context) error {
	if err := l.Launch(ctx); err != nil {
		return err
	}
	return l.WaitReady(ctx)
}

// WaitState waits until a machine is in one of some states. They should be all that
// follow the wanted one: a quick machine does not stay for us to look.
func (l *Lab) WaitState(ctx context.Context, name string, states ...string) error {
	return Until(ctx, func() (bool, string, error) {
		views, err := l.Views(ctx)
		if err != nil {
			return false, err.Error(), l.died()
		}
		now := views[name].State
		return slices.Contains(states, now), fmt.Sprintf("waiting for %s to be %s, it is %s", name, states[0], now), nil
	})
}

// Launch arms the machines, powers them on and approves each by its code.
func (l *Lab) Launch(ctx context.Context) error {
	arm := []string{"machines", "arm"}
	for _, m := range l.Active() {
		arm = append(arm, m.Name)
	}
	if _, err := l.Imagectl(ctx, arm...); err != nil {
		return err
	}
	l.Powered = time.Now()
	for _, m := range l.Active() {
		l.Log("%s: power on (%s, empty disk)", m.Name, m.Firmware)
		if err := l.PowerOn(m); err != nil {
			return err
		}
	}
	for _, m := range l.Active() {
		if err := l.Approve(ctx, m); err != nil {
			return err
		}
		l.Log("%s: code on the console equals the server's: approved", m.Name)
	}
	return nil
}

// WaitReady waits until every machine is ready, and fails early when a console
// shows a failure or a machine gives up.
func (l *Lab) WaitReady(ctx context.Context) error {
	return l.Watch(ctx, func(View) {})
}

// Watch is WaitReady that shows every look at a machine.
func (l *Lab) Watch(ctx context.Context, look func(View)) error {
	start := time.Now()
	said := map[string]string{}
	return Until(ctx, func() (bool, string, error) {
		views, err := l.Views(ctx)
		if err != nil {
			return false, err.Error(), l.died()
		}
		ready, reasons := 0, []string{}
		for _, m := range l.Active() {
			v := views[m.Name]
			look(v)
			line := fmt.Sprintf("%s: %s%s", m.Name, v.State, activity(v))
			if said[m.Name] != line {
				said[m.Name] = line
				l.Log("%s (%s)", line, time.Since(start).Round(time.Second))
			}
			if v.State == "failed" || v.State == "quarantined" {
				return false, "", fmt.Errorf("%s is %s: %s", m.Name, v.State, v.Reason)
			}
			if bad := l.Guests[m.Name].Console.Bad(); len(bad) > 0 {
				return false, "", fmt.Errorf("the console of %s shows: %s", m.Name, strings.Join(bad, "; "))
			}
			if v.State == "ready" {
				ready++
			} else {
				reasons = append(reasons, line)
			}
		}
		return ready == len(l.Active()), strings.Join(reasons, "; "), nil
	})
}

// activity is the step a machine is at.
func activity(v View) string {
	for _, s := range v.Steps {
		if s.State == "STATE_RUNNING" || s.State == "STATE_FAILED" || s.State == "running" || s.State == "failed" {
			return ": " + s.Name + " " + s.Detail
		}
	}
	return ""
}

// Done tells whether the machine said that a step is done.
func (v View) Done(step string) bool {
	return slices.ContainsFunc(v.Steps, func(s struct{ Name, State, Detail string }) bool {
		return s.Name == step && (s.State == "STATE_DONE" || s.State == "done")
	})
}
