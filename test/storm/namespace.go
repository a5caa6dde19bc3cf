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
// it is on.
type link struct{ name, bridge string }

// process is a program in a network namespace of its own.
type process struct {
	name string
	cmd  *exec.Cmd
	out  *bufio.Reader
	log  *os.File
	dead bool
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
		port := name + "-" + l.name
		err := run(ctx, "ip", "link", "add", port, "type", "veth", "peer", "name", l.name, "netns", strconv.Itoa(cmd.Process.Pid))
		if err == nil {
			err = run(ctx, "ip", "link", "set", port, "master", l.bridge, "addrgenmode", "none", "txqueuelen", "20000", "up")
		}
		if err != nil {
			return nil, errors.Join(err, p.kill())
		}
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		return nil, errors.Join(err, p.kill())
	}
	return p, nil
}

// says waits for a line.
func (p *process) says(begin string) error {
	line, err := p.out.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, begin) {
		return fmt.Errorf("%s says %q, and on its standard error:\n%s", p.name, line, p.tail())
	}
	return nil
}

// kill is kill -9; its namespace and its cards are gone with it.
func (p *process) kill() error {
	if p.dead {
		return nil
	}
	p.dead = true
	defer p.log.Close()
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
	return err
}

func (p *process) tail() string {
	b, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}
