package vm

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

func (c Config) portPath(name string) string {
	return filepath.Join(c.Dir, c.Name+"."+name+".port")
}

// portArguments give the guest its virtio serial ports.
func (c Config) portArguments() []string {
	if len(c.Ports) == 0 {
		return nil
	}
	args := []string{"-device", "virtio-serial-pci"}
	for i, name := range c.Ports {
		id := fmt.Sprintf("port%d", i)
		args = append(args, "-chardev", "socket,id="+id+",server=on,wait=off,path="+c.portPath(name),
			"-device", "virtserialport,chardev="+id+",name="+name)
	}
	return args
}

// openPorts connects to the ports at once: a guest that reads one that nobody has
// opened on this side is told that it has ended.
func (g *Guest) openPorts() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	g.ports = map[string]net.Conn{}
	for _, name := range g.Ports {
		conn, err := g.dial(ctx, g.portPath(name))
		if err != nil {
			return fmt.Errorf("opening port %s of guest %s: %w", name, g.Name, err)
		}
		g.ports[name] = conn
	}
	return nil
}

// Port is this side of one of Config.Ports; nil for another name. What is written before
// the guest has opened its side waits for it. Stop closes it.
func (g *Guest) Port(name string) net.Conn { return g.ports[name] }
