package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// kind is a machine's firmware.
type kind int

const (
	bios kind = iota
	uefi
	// romIPXE is iPXE in the card's ROM, as virtual machines have it.
	romIPXE
	kinds
)

// String is for the report.
func (k kind) String() string {
	return [...]string{"BIOS", "UEFI", "iPXE in its card", "?"}[min(k, kinds)]
}

// restart is what firmware that found nothing to boot needs to begin again.
const restart = 5 * time.Second

// machine is one simulated machine, run by one goroutine.
type machine struct {
	storm *storm
	name  string
	mac   net.HardwareAddr
	uuid  [16]byte
	// address is reserved for it in cluster.yaml, or invalid until it is given one.
	address netip.Addr
	// unlisted: cluster.yaml does not know it.
	unlisted bool
	// server is whom it got its last address from.
	server netip.Addr
	kind   kind
	// delay is when after the storm's begin it is switched on.
	delay   time.Duration
	replies chan *dhcpv4.DHCPv4

	// kernel and ignition are the times from its power-on; zero: not reached.
	kernel, ignition time.Duration
	// restarts counts how often its firmware began again, retries its repeated
	// requests, told how often it was told to come back.
	restarts, retries, told int
	// waited is what it spent in time-outs of its firmware, and before it began again.
	waited time.Duration
	// writes is how often its disk was written.
	writes int
	// left is the connection that nobody closes when iPXE becomes the kernel.
	left browser

	mu     sync.Mutex
	doing  string
	failed error
}

func (m *machine) at(doing string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doing = doing
}

// wrong records an answer that was another's, or none at all.
func (m *machine) wrong(format string, args ...any) {
	m.storm.note(m.name+" "+format, args...)
}

// run boots until the installer has its config or ctx ends.
func (m *machine) run(ctx context.Context) {
	if sleep(ctx, m.delay) != nil {
		return
	}
	begin := time.Now()
	for {
		config, err := m.boot(ctx)
		if err == nil {
			m.kernel = time.Since(begin)
			if err = m.configure(ctx, config); err == nil {
				m.ignition = time.Since(begin)
				m.at("done")
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		m.mu.Lock()
		m.failed = err
		m.storm.gaveUp(m.doing)
		m.mu.Unlock()
		m.restarts++
		m.waited += restart
		m.kernel = 0
		m.left.close()
		if sleep(ctx, restart) != nil {
			return
		}
	}
}

// boot goes from power-on to the kernel's start and returns where that finds its
// Ignition config.
func (m *machine) boot(ctx context.Context) (config string, err error) {
	if m.kind != romIPXE {
		asks, file := romAsks(m), biosProgram
		if m.kind == uefi {
			asks, file = uefiAsks(m), uefiProgram
		}
		ack, err := m.lease(ctx, asks)
		if err != nil {
			return "", err
		}
		if got := strings.TrimRight(bootFile(ack), "\x00"); got != file {
			m.wrong("was told to load %q, want %s", got, file)
		}
		if err := m.load(ctx, file); err != nil {
			return "", err
		}
	}
	ack, err := m.lease(ctx, ipxeAsks(m))
	if err != nil {
		return "", err
	}
	m.at("script")
	m.left = browser{m: m}
	script, err := m.left.get(ctx, m.expand(bootFile(ack)))
	if err != nil {
		return "", err
	}
	return m.interpret(ctx, string(script))
}

func bootFile(ack *dhcpv4.DHCPv4) string {
	return string(ack.Options.Get(dhcpv4.OptionBootfileName))
}

// expand does iPXE's variables. One that it does not know would go to the server as it is.
func (m *machine) expand(url string) string {
	platform, arch := "pcbios", "i386"
	if m.kind == uefi {
		platform, arch = "efi", "x86_64"
	}
	out := strings.NewReplacer("${mac}", m.mac.String(), "${uuid}", uuidText(m.uuid), "${serial:uristring}", "", "${platform}", platform, "${buildarch}", arch).Replace(url)
	if strings.Contains(out, "${") {
		m.wrong("was sent a variable that the simulation does not know: %s", out)
	}
	return out
}

func uuidText(u [16]byte) string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// interpret runs the installer's script: files, then the kernel.
func (m *machine) interpret(ctx context.Context, script string) (config string, err error) {
	want := "echo imagectl: machine " + m.name + ", card " + m.mac.String() + "\n"
	if !m.unlisted && !strings.Contains(script, want) {
		m.wrong("got a script of another:\n%s", script)
	}
	var files []string
	for line := range strings.Lines(script) {
		word := strings.Fields(line)
		if len(word) < 4 || (word[0] != "kernel" && word[0] != "initrd") {
			continue
		}
		files = append(files, word[3])
		for _, arg := range word[4:] {
			if u, ok := strings.CutPrefix(arg, "ignition.config.url="); ok {
				config = u
			}
		}
	}
	if len(files) == 0 && !m.unlisted {
		return "", errLocal
	}
	if len(files) < 2 || len(files) < 3 && config == "" {
		return "", fmt.Errorf("the script starts no installer:\n%s", script)
	}
	for _, u := range append(files, config) {
		if u == "" {
			continue // the last of the files brings it
		}
		if p, err := url.Parse(u); err != nil || p.Query().Get("mac") != m.mac.String() {
			m.wrong("got the URL of another: %s", u)
		}
	}
	for try := 1; ; try++ {
		err := m.files(ctx, files)
		if err == nil {
			return config, nil
		}
		if try == scriptTries {
			return "", err
		}
		m.retries++
		if err := sleep(ctx, scriptSleep); err != nil {
			return "", err
		}
	}
}

// errLocal says that the script ends in the machine's own disk.
var errLocal = errors.New("the script starts the machine's own disk")

func (m *machine) files(ctx context.Context, urls []string) error {
	for _, u := range urls {
		part := strings.Split(u, "/") // http://host/files/SHA256/NAME?...
		if len(part) != 6 {
			return fmt.Errorf("%s is not the URL of a file", u)
		}
		name, _, _ := strings.Cut(part[5], "?")
		m.at("HTTP of " + name)
		body, err := m.left.get(ctx, u)
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != part[4] {
			m.wrong("got other bytes as %s", u)
		}
	}
	return nil
}

// configure is the kernel's part: an address of its own, then Ignition, which has its
// config or tries again for ever.
func (m *machine) configure(ctx context.Context, config string) error {
	if _, err := m.lease(ctx, linuxAsks(m)); err != nil {
		return err
	}
	m.at("Ignition")
	if config == "" {
		return nil
	}
	b := browser{m: m}
	defer b.close()
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		body, err := b.get(ctx, config)
		if err == nil {
			var parsed struct{ Ignition struct{ Version string } }
			if err := json.Unmarshal(body, &parsed); err != nil || parsed.Ignition.Version == "" {
				m.wrong("got no Ignition config: %.200s", body)
			}
			return nil
		}
		m.retries++
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}
