package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/install"
)

// tries is how often an installation is begun before the machine says that it
// failed; a refusal counts at once.
const tries = 3

// installation is the one installation this boot is about. Methods lock.
type installation struct {
	mu      sync.Mutex
	arming  string
	running bool
	steps   []*api.StepStatus
	done    bool
	failure string
	// links is why the declared links are not in use; empty when they are, or there are none.
	links string
}

func (i *installation) report() report {
	i.mu.Lock()
	defer i.mu.Unlock()
	return report{steps: append(linksStep(i.links), clone(i.steps)...), installed: i.done, failure: i.failure}
}

func (i *installation) set(state api.StepStatus_State, detail string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.steps = []*api.StepStatus{step("install", state, detail)}
}

// begin says whether an installation for this arming has to start.
func (i *installation) begin(arming string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.running || i.arming == arming && (i.done || i.failure != "") {
		return false
	}
	i.arming, i.running, i.done, i.failure = arming, true, false, ""
	return true
}

// end takes what follows the installation besides, such as the boot order.
func (i *installation) end(err error, also ...*api.StepStatus) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.running = false
	if err != nil {
		i.failure = err.Error()
		i.steps = []*api.StepStatus{step("install", api.StepStatus_STATE_FAILED, i.failure)}
		return
	}
	i.done = true
	i.steps = append([]*api.StepStatus{step("install", api.StepStatus_STATE_DONE, "")}, also...)
}

// install is the mode of a netbooted machine: it writes a disk when the server
// says so, and reboots when the server says so.
func (a *Agent) install(ctx context.Context) error {
	var now installation
	changed := make(chan struct{}, 1)
	var work sync.WaitGroup
	defer work.Wait()
	a.ready()
	var err error
	if now.links, err = a.declaredLinks(ctx); err != nil {
		now.links = strings.TrimSpace(now.links + " " + err.Error())
		a.say("the links of cluster.yaml are not in use: " + now.links)
	}
	var said string
	return a.talk(ctx, api.Mode_MODE_INSTALLER, changed, now.report, func(ctx context.Context, resp *api.SyncResponse) {
		switch d := resp.GetDirective().(type) {
		case *api.SyncResponse_Install:
			if !now.begin(d.Install.GetArmingId()) {
				return
			}
			if now.links != "" {
				// The installed system would have them and nothing else.
				refused := errors.New("nothing was written: " + now.links + "; correct the switch or the machine's network in cluster.yaml, restart imagectl serve, arm and netboot it again")
				a.say("installing failed: " + refused.Error())
				now.end(refused)
				poke(changed)
				return
			}
			work.Go(func() {
				done, err := a.installOnto(ctx, d.Install, &now, changed)
				if err != nil {
					now.end(err)
				} else {
					now.end(nil, a.bootFrom(ctx, d.Install.GetMachine(), done)...)
				}
				poke(changed)
			})
		case *api.SyncResponse_Reboot:
			a.Log.Info("rebooting", "because", d.Reboot.GetReason())
			a.Host.Print("imagectl: rebooting: " + d.Reboot.GetReason())
			if err := a.Host.Reboot(ctx); err != nil {
				a.Log.Error("rebooting failed", "err", err)
				_ = pause(ctx, poll)
				return
			}
			<-ctx.Done()
		case *api.SyncResponse_Wait:
			if d.Wait.GetReason() != said {
				said = d.Wait.GetReason()
				a.Log.Info("waiting", "code", d.Wait.GetReasonCode(), "because", said)
				a.Host.Print("imagectl: waiting: " + said)
			}
		default:
			a.Log.Warn("the server sent a directive that is not for an installer", "directive", fmt.Sprintf("%T", d))
		}
	})
}

// installOnto carries an order out, several times if need be. What it returns is
// the end of this arming.
func (a *Agent) installOnto(ctx context.Context, order *api.Install, now *installation, changed chan<- struct{}) (install.Done, error) {
	key, cert := a.id.files()
	files := []*api.File{
		{Path: KeyPath, Mode: 0o600, Content: key},
		{Path: CertPath, Mode: 0o644, Content: cert},
	}
	var sent time.Time
	var phase install.Phase
	i := &install.Installer{Host: a.Host, HTTP: &http.Client{Transport: &http.Transport{ResponseHeaderTimeout: 30 * time.Second}}, Log: a.Log}
	i.Progress = func(p install.Phase, done, total uint64) {
		if p != phase {
			phase = p
			a.Host.Print("imagectl: installing: " + string(p))
			now.set(api.StepStatus_STATE_RUNNING, string(p))
			poke(changed)
		} else if a.Now().Sub(sent) < time.Second {
			return
		}
		sent = a.Now()
		short, cancel := context.WithTimeout(ctx, a.progressTime)
		defer cancel()
		if _, err := a.servers.current().agent.ReportInstall(short, connect.NewRequest(&api.ReportInstallRequest{
			ArmingId: order.GetArmingId(), BytesDone: done, BytesTotal: total, Phase: string(p),
		})); err != nil {
			a.Log.Debug("reporting progress failed", "err", err)
		}
	}
	var back backoff
	for try := 1; ; try++ {
		done, err := i.Install(ctx, order, files)
		if err == nil {
			a.Log.Info("installed", "disk", done.Disk.Path, "bytes", done.Bytes)
			a.Host.Print("imagectl: installed on " + done.Disk.Path)
			return done, nil
		}
		a.Log.Error("installing failed", "try", try, "err", err)
		a.Host.Print("imagectl: installing failed: " + err.Error())
		var refused *install.RefusedError
		if errors.As(err, &refused) || try == tries || ctx.Err() != nil {
			return install.Done{}, err
		}
		a.rest(ctx, &back)
	}
}
