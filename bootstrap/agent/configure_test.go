package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

const firmwareNode = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.imagectl/node/raw"

// unconfigured is a node without node.json, and the configuration of one.
func unconfigured(t *testing.T) (*hosttest.Node, nodeconf.Config, []byte) {
	t.Helper()
	ca, err := pki.NewCA("imagectl", time.Hour, time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	conf := nodeconf.Config{Cluster: "lab", Mode: nodeconf.Node, Servers: []string{"https://192.0.2.1:8443"}, CA: string(ca.CertificatePEM())}
	text, err := conf.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return hosttest.New(t), conf, text
}

func TestConfigureKeepsWhatThePlatformSaysOnce(t *testing.T) {
	t.Parallel()
	n, want, text := unconfigured(t)
	n.Program("modprobe", func(host.Command) ([]byte, error) {
		return nil, n.WriteFile(firmwareNode, text, 0o400)
	})
	waited := func() { t.Error("it waited") }
	got, err := Configure(t.Context(), n.Host, slog.New(slog.DiscardHandler), waited)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Another server, later: the machine stays with the first one.
	other := want
	other.Servers = []string{"https://192.0.2.66:8443"}
	text, err = other.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.WriteFile(firmwareNode, text, 0o400); err != nil {
		t.Fatal(err)
	}
	n.Ran()
	if got, err = Configure(t.Context(), n.Host, slog.New(slog.DiscardHandler), waited); err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("the second time: got %v, %v, want what was said first", got, err)
	}
	if ran := n.Ran(); ran != nil {
		t.Errorf("the second time it ran %v", ran)
	}
}

// A token is a secret: only root reads it on the machine.
func TestConfigureKeepsATokenForItself(t *testing.T) {
	t.Parallel()
	for token, want := range map[string]fs.FileMode{"": 0o644, "w1.x": 0o600} {
		n, conf, _ := unconfigured(t)
		conf.Token = token
		text, err := conf.Encode()
		if err != nil {
			t.Fatal(err)
		}
		n.Program("modprobe", func(host.Command) ([]byte, error) { return nil, n.WriteFile(firmwareNode, text, 0o400) })
		got, err := Configure(t.Context(), n.Host, slog.New(slog.DiscardHandler), nil)
		if err != nil || got.Token != token {
			t.Errorf("token %q: got %q, %v", token, got.Token, err)
		}
		if mode, err := n.Mode(nodeconf.Path); err != nil || mode != want {
			t.Errorf("token %q: %s has mode %v, %v, want %v", token, nodeconf.Path, mode, err, want)
		}
	}
}

func TestConfigureWaitsForAPlatformAndSaysSo(t *testing.T) {
	t.Parallel()
	n, want, text := unconfigured(t)
	if err := n.MkdirAll("/dev", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.WriteFile("/dev/console", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	waits := 0
	got, err := Configure(t.Context(), n.Host, slog.New(slog.DiscardHandler), func() {
		waits++
		// The drive is found late.
		n.Program("mount", func(host.Command) ([]byte, error) {
			return nil, n.WriteFile("/run/imagectl/medium/user-data", text, 0o644)
		})
		if err := n.WriteFile("/dev/disk/by-label/cidata", nil, 0o644); err != nil {
			t.Error(err)
		}
	})
	if err != nil || cmp.Diff(want, got) != "" || waits != 1 {
		t.Errorf("got %v, %v after %d waits, want what the medium says after one", got, err, waits)
	}
	console, err := n.ReadFile("/dev/console")
	if err != nil {
		t.Fatal(err)
	}
	const said = "imagectl: this machine does not know its server: there is no /etc/imagectl/node.json, and the platform says nothing"
	if strings.Count(string(console), said) != 1 {
		t.Errorf("the console shows %q, want %q once", console, said)
	}
}

func TestConfigureEndsWithItsContext(t *testing.T) {
	t.Parallel()
	n, _, _ := unconfigured(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Configure(ctx, n.Host, slog.New(slog.DiscardHandler), cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestConfigureRefusesABadFile(t *testing.T) {
	t.Parallel()
	n, _, _ := unconfigured(t)
	if err := n.WriteFile(nodeconf.Path, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Configure(t.Context(), n.Host, slog.New(slog.DiscardHandler), nil)
	const want = "reading /etc/imagectl/node.json: parsing node configuration: cluster is empty"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
