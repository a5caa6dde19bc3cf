// Package uml runs a script as the first process of a Linux that is itself a program
// (Debian's user-mode-linux): for what the kernel of the machine that tests may lack, such as
// bonds, VLANs, and network cards with a MAC address of their own. It needs root.
package uml

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Said is what a script printed, by the first word of lines that begin with @@.
type Said map[string][]string

// Run starts a Linux with this machine's files, read-only, the script as its first process
// and work, where the kernel's modules are too, as $WORK. It ends with a line "@@end". More
// arguments are the kernel's: Cable makes those of network cards.
func Run(t *testing.T, script, work string, args ...string) Said {
	t.Helper()
	const linux, modules = "/usr/bin/linux.uml", "/usr/lib/uml/modules"
	for _, f := range []string{linux, modules, "/lib/systemd/systemd-networkd"} {
		if _, err := os.Stat(f); err != nil {
			t.Fatalf("a judge is missing: %v (make deps installs it)", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(work, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(work, "lib/modules")); err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs(script)
	if err != nil {
		t.Fatal(err)
	}
	// It takes 20 seconds here; beside a hundred other programs, more.
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, linux, append([]string{
		"mem=256M", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + script, "WORK=" + work,
		"con=null", "con0=fd:0,fd:1", "quiet", "panic=-1",
	}, args...)...)
	cmd.Dir = work
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + work, "TMPDIR=" + work}
	// It is several processes, and stops when all of them do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Logf("linux.uml: %v", err) // it ends with 0 or 1, as the console goes
	}
	s := Said{}
	for line := range strings.Lines(out.String()) {
		if rest, ok := strings.CutPrefix(line, "@@"); ok {
			word, value, _ := strings.Cut(strings.TrimRight(rest, "\r\n"), " ")
			s[word] = append(s[word], value)
		}
	}
	if s["end"] == nil {
		t.Fatalf("the script did not come to its end:\n%s", out.String())
	}
	return s
}

// Cable is a card with a MAC address and the end of a cable: what it sends from one UDP port
// of the loopback interface arrives at another, where the other end is. The test has to be
// alone in its network namespace, as make has it.
func Cable(card, mac, from, to string) string {
	return card + "=ucast," + mac + ",127.0.0.1," + from + "," + to
}

// JSON decodes the one value of a word.
func JSON[T any](t *testing.T, s Said, word string) T {
	t.Helper()
	var v T
	if len(s[word]) != 1 {
		t.Fatalf("%d lines of %s", len(s[word]), word)
	}
	if err := json.Unmarshal([]byte(s[word][0]), &v); err != nil {
		t.Fatalf("%s: %v: %s", word, err, s[word][0])
	}
	return v
}
