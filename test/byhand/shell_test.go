//go:build e2e

package byhand

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// shell is a root shell on a machine that was made for this test (handIgnition); no
// machine of imagectl's has one. It runs one command at a time.
type shell struct {
	name string
	conn net.Conn
	in   *bufio.Reader
	log  io.Writer
	n    int

	mu   sync.Mutex
	last string
}

// newShell talks to bash at the other end of conn; log gets all that is said.
func newShell(name string, conn net.Conn, log io.Writer) *shell {
	return &shell{name: name, conn: conn, in: bufio.NewReader(conn), log: log}
}

// Run is Shell's.
func (s *shell) Run(ctx context.Context, command string) (string, error) {
	s.n++
	end := fmt.Sprintf("-- end of command %d: ", s.n)
	stop := context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Now()) })
	defer stop()
	fmt.Fprintf(s.log, "$ %s\n", command)
	if _, err := fmt.Fprintf(s.conn, "{ %s\n} </dev/null 2>&1\necho; echo \"%s$?\"\n", command, end); err != nil {
		return "", fmt.Errorf("typing on %s: %w", s.name, err)
	}
	var out strings.Builder
	for {
		line, err := s.in.ReadString('\n')
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return out.String(), fmt.Errorf("reading what %q says on %s: %w; so far:\n%s", command, s.name, err, out.String())
		}
		fmt.Fprint(s.log, line)
		if status, ended := strings.CutPrefix(strings.TrimSpace(line), end); ended {
			if status != "0" {
				return out.String(), fmt.Errorf("on %s, %q ended with status %s:\n%s", s.name, command, status, out.String())
			}
			return out.String(), nil
		}
		out.WriteString(line)
		// A kubeconfig's key is nothing to print.
		if !strings.Contains(line, "-key-data: ") {
			s.say(strings.TrimSpace(line))
		}
	}
}

func (s *shell) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if line != "" {
		s.last = line
	}
}

// lastLine is the last that was printed.
func (s *shell) lastLine() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}
