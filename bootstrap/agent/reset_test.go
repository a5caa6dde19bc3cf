package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// kept are the agent's files that a reset leaves: who the machine is, what it has said and signed,
// what it keeps for the server, and what is about the system that stays.
func kept() []string {
	return []string{KeyPath, CertPath, authorityPath, recordPath, headsPath, witnessPath, orderPath, backupsPath, imported, networkOwed, networkBoot, linkChangePath, resetPath}
}

// Each file of the agent's own is one that a reset keeps or forgets: a new one is a decision.
func TestAResetKnowsEveryFile(t *testing.T) {
	t.Parallel()
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`StateDir ?\+ ?"(/[^"]+)"`)
	seen := 0
	for _, s := range sources {
		if strings.HasSuffix(s, "_test.go") {
			continue
		}
		b, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(b), -1) {
			seen++
			path := StateDir + m[1]
			if slices.Contains(kept(), path) == slices.Contains(forgotten(), path) {
				t.Errorf("%s names %s, which a reset has to keep or to forget", s, path)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d files are named", seen)
	}
}

// full is a node that has joined and is told to be reset.
func full(t *testing.T) (*lab, *node, *api.Order) {
	t.Helper()
	l := newLab(t)
	programs(l).ready = true
	m := newMembers(l, peer(9, "cp1", "127.0.0.1"), peer(2, "cp2", "10.0.0.2"), peer(3, "cp3", "10.0.0.3"))
	n, run := l.newNode(), initRun(l)
	l.put(wal, "9")
	for i := range m.list {
		m.list[i].Follows = true
	}
	run.Etcd.Action, run.Etcd.Endpoints = api.EtcdWanted_ACTION_RUN, []string{"https://10.0.0.2:2379"}
	n.use(run)
	if out := once(n, run); !out.done || len(m.list) != 3 {
		t.Fatalf("%s\n%s", states(out), l.log)
	}
	for _, p := range forgotten() {
		if !l.exists(p) {
			l.put(p, "of before")
		}
	}
	for _, p := range []string{KeyPath, CertPath, authorityPath, headsPath, witnessPath, networkOwed, networkBoot, linkChangePath, backupsPath + "/one", imported + "/one"} {
		if !l.exists(p) {
			l.put(p, "kept")
		}
	}
	l.put(bootIDPath, "boot 1")
	l.node.Ran()
	return l, n, &api.Order{Id: "o1", Kind: api.Order_KIND_RESET_KEEP, By: "imagectl://lab/operator/ada", Reason: "corrupt"}
}

func (l *lab) left(t *testing.T, when string) {
	t.Helper()
	for _, p := range forgotten() {
		if l.exists(p) {
			t.Errorf("%s: %s is there", when, p)
		}
	}
	for _, p := range kept() {
		if l.exists(p) != (p != resetPath) {
			t.Errorf("%s: %s is there: %v", when, p, l.exists(p))
		}
	}
}

func TestAResetThatKeepsTheSystem(t *testing.T) {
	t.Parallel()
	l, n, o := full(t)
	n.obey(t.Context(), o)
	if ran := l.node.Ran(); !slices.Contains(ran, "systemctl reboot") || !l.exists(resetPath) {
		t.Fatalf("it ran %q\n%s", ran, l.log)
	}
	if l.exists(etcd.ConfigPath) || l.exists("/var/lib/kubelet/config.yaml") || l.read(wal) != "9" {
		t.Error("etcd or kubelet would start again, or data went while they run")
	}
	if log := l.read(recordPath); !strings.Contains(log, `"action":"reset-keep"`) || !strings.Contains(log, "corrupt") {
		t.Errorf("its log has %s", log)
	}
	// Nothing is made anew until the system ends.
	if out := n.work(t.Context(), n.directive()); out.done || len(out.changed) > 0 || l.exists(etcd.ConfigPath) {
		t.Errorf("it did %v: %s", out.changed, states(out))
	}
	// The agent alone is started again, in the same system.
	if rebooting, err := l.newNode().finishReset(t.Context()); err != nil || !rebooting || l.read(wal) != "9" {
		t.Errorf("in the same system: %v, %v", rebooting, err)
	}
	l.put(bootIDPath, "boot 2")
	// A step that was under way has written kubelet's file after all.
	l.put("/var/lib/kubelet/config.yaml", "late")
	l.node.SetUnit(kubeadm.Unit, "active")
	l.node.SetUnit(etcd.Unit, "inactive")
	if rebooting, err := l.newNode().finishReset(t.Context()); err != nil || !rebooting || l.exists("/var/lib/kubelet/config.yaml") || !l.exists(kubeadm.AdminConf) {
		t.Errorf("while kubelet runs: %v, %v", rebooting, err)
	}
	l.node.SetUnit(kubeadm.Unit, "inactive")
	again := l.newNode()
	if rebooting, err := again.finishReset(t.Context()); err != nil || rebooting {
		t.Fatalf("%v, %v", rebooting, err)
	}
	l.left(t, "after its reboot")
	if rebooting, err := l.newNode().finishReset(t.Context()); err != nil || rebooting {
		t.Errorf("the next time: %v, %v", rebooting, err)
	}
	// The order was obeyed, whoever asks again.
	if err := again.loadOrder(); err != nil {
		t.Fatal(err)
	}
	l.node.Ran()
	again.obey(t.Context(), o)
	if ran := l.node.Ran(); slices.Contains(ran, "systemctl reboot") {
		t.Errorf("it obeys twice: %q", ran)
	}
}

// No force makes a machine give up what etcd needs.
func TestAResetKeepsTheQuorum(t *testing.T) {
	t.Parallel()
	l, n, o := full(t)
	o.Force = true
	l.members.list[1].Answers, l.members.list[1].Follows = false, false
	n.obey(t.Context(), o)
	if ran := l.node.Ran(); slices.Contains(ran, "systemctl reboot") || l.exists(resetPath) || !l.exists(etcd.ConfigPath) {
		t.Errorf("it ran %q", ran)
	}
	if d := n.news().order.GetDetail(); !strings.Contains(d, "quorum") {
		t.Errorf("it says %q", d)
	}
}

// TestAResetKilledAnywhere ends the agent at each program that it starts, and at a reboot that it
// does not survive.
func TestAResetKilledAnywhere(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		l, n, o := full(t)
		count, killing := 0, true
		real := l.node.Exec
		l.node.Exec = func(ctx context.Context, cmd host.Command) ([]byte, error) {
			if count++; killing && count == at {
				panic(killed{})
			}
			return real(ctx, cmd)
		}
		died := dies(func() {
			n.obey(t.Context(), o)
			l.put(bootIDPath, "boot 2")
			l.node.SetUnit(etcd.Unit, "inactive")
			l.node.SetUnit(kubeadm.Unit, "inactive")
			if _, err := l.newNode().finishReset(t.Context()); err != nil {
				t.Error(err)
			}
		})
		killing = false
		if !died {
			l.left(t, "never killed")
			if at < 3 {
				t.Errorf("only %d places to be killed at", at)
			}
			return
		}
		again := l.newNode()
		if _, err := again.finishReset(t.Context()); err != nil {
			t.Error(err)
		}
		if !l.exists(resetPath) && l.exists(joinedPath) {
			continue // before it was begun: it is reported as done, and a person who looks sees that it is not
		}
		l.put(bootIDPath, "boot 3")
		l.node.SetUnit(etcd.Unit, "inactive")
		l.node.SetUnit(kubeadm.Unit, "inactive")
		if rebooting, err := l.newNode().finishReset(t.Context()); err != nil || rebooting {
			t.Errorf("killed at %d: %v, %v", at, rebooting, err)
		}
		l.left(t, "killed")
	}
}

// Killed between any two files that it removes, the next one removes the rest; killed before the system
// ended, it ends it first, and nothing else is gone.
func TestAResetKilledBetweenFiles(t *testing.T) {
	t.Parallel()
	l, _, _ := full(t)
	fill := func() {
		for _, p := range append(forgotten(), starters()...) {
			if !l.exists(p) {
				l.put(p, "of before")
			}
		}
	}
	l.node.SetUnit(etcd.Unit, "active")
	for removed := range len(starters()) + 1 {
		fill()
		l.put(resetPath, "boot 1\n")
		for _, p := range starters()[:removed] {
			if err := l.node.Remove(p); err != nil {
				t.Fatal(err)
			}
		}
		l.node.Ran()
		if rebooting, err := l.newNode().finishReset(t.Context()); err != nil || !rebooting || !slices.Contains(l.node.Ran(), "systemctl reboot") {
			t.Errorf("with %d starters gone: %v, %v", removed, rebooting, err)
		}
		for _, p := range starters() {
			if l.exists(p) {
				t.Errorf("with %d starters gone: %s is there", removed, p)
			}
		}
		if !l.exists(etcd.DataDir) || !l.exists(joinedPath) {
			t.Errorf("with %d starters gone: data went while etcd may run", removed)
		}
	}
	l.put(bootIDPath, "boot 2")
	l.node.SetUnit(etcd.Unit, "inactive")
	l.node.SetUnit(kubeadm.Unit, "inactive")
	for removed := range len(forgotten()) + 1 {
		for _, p := range forgotten() {
			if err := l.node.Remove(p); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range forgotten()[removed:] {
			l.put(p, "of before")
		}
		l.put(resetPath, "boot 1\n")
		l.put(orderPath, "{}")
		if rebooting, err := l.newNode().finishReset(t.Context()); err != nil || rebooting {
			t.Errorf("with %d gone: %v, %v", removed, rebooting, err)
		}
		for _, p := range append(forgotten(), resetPath) {
			if l.exists(p) {
				t.Errorf("with %d gone: %s is left", removed, p)
			}
		}
	}
}

// What cannot be removed is said, and tried again by the next start.
func TestAResetThatCannotRemove(t *testing.T) {
	t.Parallel()
	l, _, _ := full(t)
	l.put(resetPath, "boot 0")
	l.node.SetUnit(etcd.Unit, "inactive")
	l.node.SetUnit(kubeadm.Unit, "inactive")
	l.node.Program("systemctl", func(c host.Command) ([]byte, error) {
		return nil, &host.RunError{Argv: c.Argv, Cause: errors.New("no bus")}
	})
	if _, err := l.newNode().finishReset(t.Context()); err == nil || !l.exists(resetPath) {
		t.Errorf("without systemd: %v", err)
	}
}
