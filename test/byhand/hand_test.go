//go:build e2e

package byhand

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// kubernetesVersion is the one that the lab's images hold.
const kubernetesVersion = "v1.36.3"

// hand has a cluster typed (Typist) on machines whose shell is at a port of their own.
type hand struct {
	t    *testing.T
	rack *lab.Lab
	dir  string
}

// config is a machine whose disk was written beforehand.
func (h hand) config(m lab.Machine) vm.Config {
	c := h.rack.Config(m)
	c.Dir, c.Disk = h.dir, filepath.Join(h.dir, m.Name+".disk")
	c.DiskFirst, c.Ports = true, []string{handPort}
	return c
}

func (h hand) kubeconfig() string { return filepath.Join(h.dir, "kubeconfig") }

func (h hand) race(ctx context.Context) *Race {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the cluster made by hand was not there after %s", patience))
	defer cancel()
	if err := h.writeDisks(ctx); err != nil {
		h.t.Fatal(err)
	}
	r := NewRace(0, func(format string, args ...any) { h.rack.Log("by hand: "+format, args...) })
	shells, toType := map[string]*shell{}, map[string]Shell{}
	for _, m := range h.rack.Machines {
		if err := h.rack.Start(h.config(m)); err != nil {
			h.t.Fatal(err)
		}
		log, err := os.Create(filepath.Join(h.dir, m.Name+".shell"))
		if err != nil {
			h.t.Fatal(err)
		}
		defer log.Close()
		shells[m.Name] = newShell(m.Name, h.rack.Guests[m.Name].Port(handPort), log)
		toType[m.Name] = shells[m.Name]
	}
	administered := make(chan struct{})
	w := &Typist{Race: r, Machines: contestants(h.rack.Machines), Shells: toType, Kubernetes: kubernetesVersion, Dir: handDir, AddOn: flannel,
		Etcd:  fmt.Sprintf("      - name: heartbeat-interval\n        value: \"%d\"\n      - name: election-timeout\n        value: \"%d\"\n", heartbeatMs, electionMs),
		Waits: "until systemctl is-active --quiet containerd; do sleep 1; done",
		Administer: func(kubeconfig string) error {
			defer close(administered)
			return os.WriteFile(h.kubeconfig(), []byte(kubeconfig), 0o600)
		},
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return w.Type(ctx) })
	all.Go(func() error { return h.watch(ctx, w, shells, administered) })
	if err := all.Wait(); err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h hand) writeDisks(ctx context.Context) error {
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return err
	}
	image := filepath.Join(h.dir, EtcdImage)
	if err := WriteEtcdImage(ctx, h.rack.Upstream, kubernetesVersion, image); err != nil {
		return err
	}
	for _, m := range h.rack.Machines {
		if err := h.handDisk(ctx, m, image); err != nil {
			return fmt.Errorf("writing the disk of %s: %w", m.Name, err)
		}
	}
	h.rack.Log("by hand: disks written")
	return nil
}

// watch waits until all is typed and all nodes are Ready, says what it waits for, and
// ends the work when a console shows that something broke.
func (h hand) watch(ctx context.Context, w *Typist, shells map[string]*shell, administered <-chan struct{}) error {
	said := time.Now()
	err := lab.Until(ctx, func() (bool, string, error) {
		reason := w.Missing(Joined, w.Machines)
		for _, m := range h.rack.Machines {
			if bad := h.rack.Guests[m.Name].Console.Bad(); len(bad) > 0 {
				return false, "", fmt.Errorf("the console of %s shows: %s", m.Name, strings.Join(bad, "; "))
			}
		}
		if time.Since(said) > time.Minute && reason != "" {
			said = time.Now()
			h.rack.Log("by hand: %s", reason)
			for _, m := range h.rack.Machines {
				h.rack.Log("by hand: %s says: %s", m.Name, shells[m.Name].lastLine())
			}
		}
		return reason == "", reason, nil
	})
	if err != nil {
		return err
	}
	if err := wait(ctx, administered); err != nil {
		return err
	}
	k, err := open(h.kubeconfig())
	if err != nil {
		return err
	}
	return k.allReady(ctx, h.rack, func(name string) { w.Saw(Ready, name) })
}

// Five guests on two cores lose etcd's leader again and again with etcd's own 100 ms and 1 s, so both
// clusters have longer times.
const heartbeatMs, electionMs = 500, 5000
