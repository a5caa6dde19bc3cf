package serverapi

import (
	"context"
	"crypto/rand"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// The real agent, on a host that is a directory, talks to the real server: what
// is told to one is understood by the other.
func TestTheRealAgentEnrolsInstallsAndRuns(t *testing.T) {
	t.Parallel()
	m := w1()
	m.Serial, m.Image = "W1-SERIAL", cp1().Image
	r := start(t, config(cp1(), m))
	node := hosttest.New(t)
	for name, text := range map[string]string{
		"/dev/console": "", "/proc/sys/kernel/random/boot_id": "boot-1\n", "/sys/class/dmi/id/product_serial": "W1-SERIAL\n",
	} {
		if err := node.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(mode nodeconf.Mode) (stop func()) {
		a := &agent.Agent{
			Host: node.Host, Log: slog.New(slog.DiscardHandler), Version: "test", Now: time.Now, Rand: rand.Reader, Jitter: func() float64 { return 0 },
			Config: nodeconf.Config{Cluster: "demo", Mode: mode, Servers: []string{r.url}, CA: string(r.CAPEM())},
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the agent: %v", err)
			}
		}
	}
	until := func(what string, good func() bool) {
		t.Helper()
		for end := time.Now().Add(3 * time.Minute); !good(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				console, err := node.ReadFile("/dev/console")
				t.Fatalf("waiting for %s; the console says (%v):\n%s", what, err, console)
			}
		}
	}
	console := func(re string) []string {
		b, err := node.ReadFile("/dev/console")
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile(re).FindStringSubmatch(string(b))
	}

	stop := run(nodeconf.Installer)
	until("the code", func() bool { return console(`CODE +(\S+)`) != nil })
	until("the request", func() bool { rec, _ := r.store.Machine("w1"); return len(rec.Pending) == 1 })
	if o := r.approve("w1", console(`CODE +(\S+)`)[1], false); !o.GetOk() {
		t.Fatalf("the console's code: %v", o)
	}
	until("the enrolment", func() bool { return console("enrolled as w1") != nil })
	until("the wait", func() bool { return console("waiting: w1 is approved; to install it: imagectl machines arm w1") != nil })
	// There is no /dev/vda: it must say so, and the server must remember.
	r.arm("w1", false)
	until("the failure", func() bool { return r.store.State("w1") == machine.Failed })
	rec, _ := r.store.Machine("w1")
	if !strings.Contains(rec.Reason, "/dev/vda") || rec.Arming != nil {
		t.Errorf("the record: %+v", rec)
	}
	stop()

	// As if the disk had been written: the installed system has the same key.
	stop = run(nodeconf.Node)
	until("the first report", func() bool { return r.store.State("w1") == machine.Enrolled })
	operator := r.operator(pki.RoleReader)
	var view *api.MachineView
	until("its steps", func() bool {
		list, err := operator.ListMachines(t.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		view = list.Msg.GetMachines()[1]
		return len(view.GetSteps()) > 0
	})
	// The server and its disk are lost. The agent finds the restored one by itself.
	enrolled := func() int {
		b, err := node.ReadFile("/dev/console")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "enrolled as w1")
	}
	before := enrolled()
	r.restore(config(cp1(), m), r.backup(), time.Now())
	until("the report to the restored server", func() bool {
		got, ok := r.board.get("w1")
		return ok && len(got.last.GetSteps()) > 0
	})
	if n := enrolled(); n != before || r.store.State("w1") != machine.Enrolled {
		t.Errorf("it enrolled %d times more and is %s", n-before, r.store.State("w1"))
	}
	if view.GetState() != "enrolled" || view.GetCertificateSerial() == "" || view.GetLastSeen() == nil {
		t.Errorf("the list: %v", view)
	}
	stop()
}
