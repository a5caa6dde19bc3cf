package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// link is a card of a namespace: its name there, and the bridge of this namespace that
// it is on. Without a bridge it is a device of this namespace that moves there.
type link struct{ name, bridge string }

// process is a program in a network namespace of its own.
type process struct {
	name string
	cmd  *exec.Cmd
	out  *bufio.Reader
	log  *os.File
	// ports are its cards' other ends.
	ports []string
	dead  bool
}

// spawn runs a shell script in a new namespace that has the links.
func spawn(ctx context.Context, name, dir, script string, env []string, links ...link) (*process, error) {
	log, err := os.Create(dir + "/" + name + ".log")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("sh", "-c", "read -r go\nip link set lo up\n"+script)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), env...), log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, out: bufio.NewReader(out), log: log}
	for _, l := range links {
		if l.bridge != "" {
			p.ports = append(p.ports, l.port(name))
		}
		if err := l.plug(ctx, name, strconv.Itoa(cmd.Process.Pid)); err != nil {
			return nil, errors.Join(err, p.kill())
		}
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		return nil, errors.Join(err, p.kill())
	}
	return p, nil
}

// plug gives a card to the namespace of a process.
func (l link) plug(ctx context.Context, name, pid string) error {
	if l.bridge == "" {
		return run(ctx, "ip", "link", "set", l.name, "netns", pid)
	}
	port := l.port(name)
	if err := run(ctx, "ip", "link", "add", port, "type", "veth", "peer", "name", l.name, "netns", pid); err != nil {
		return err
	}
	return run(ctx, "ip", "link", "set", port, "master", l.bridge, "addrgenmode", "none", "txqueuelen", "20000", "up")
}

// port is the other end of a card.
func (l link) port(name string) string { return name + "-" + l.name }

// says waits for a line.
func (p *process) says(begin string) error {
	line, err := p.out.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, begin) {
		return fmt.Errorf("%s says %q, and on its standard error:\n%s", p.name, line, p.tail())
	}
	return nil
}

// stop ends it as an operator does.
func (p *process) stop() error {
	defer p.log.Close()
	p.dead = true
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("%s ended with %w:\n%s", p.name, err, p.tail())
	}
	return nil
}

// kill is kill -9; its namespace is gone with it, and its cards.
func (p *process) kill() error {
	if p.dead {
		return nil
	}
	p.dead = true
	defer p.log.Close()
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
	for _, port := range p.ports {
		// The kernel does that too, but not at once; where it has, this fails.
		_ = run(context.Background(), "ip", "link", "delete", port)
	}
	return err
}

func (p *process) tail() string {
	b, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("running %s %q: %w: %s", name, args, err, out)
	}
	return nil
}
