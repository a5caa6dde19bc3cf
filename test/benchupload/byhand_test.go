//go:build bench

package benchupload

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/daemon"
)

// byHand is what people do without imagectl, with the tools of the platform, to the same server
// and in the same round.
type byHand struct {
	name string
	// command is timed. Before and after are not; after looks at what arrived, and makes room.
	command       []string
	before, after func(t *testing.T)
}

func (h byHand) run(t *testing.T) figures {
	t.Helper()
	if h.before != nil {
		h.before(t)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), h.command[0], h.command[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+daemon.DebianPath)
	cmd.Stdout, cmd.Stderr = &said, &said
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", h.name, err, said.String())
	}
	f := figures{seconds: time.Since(begin).Seconds(), cpu: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}
	h.after(t)
	return f
}

// whole wants a file to be the one that was sent.
func whole(t *testing.T, by, name string, sent file) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := described(t, f); got.SHA256 != sent.SHA256 {
		t.Errorf("%s: there are %d bytes with the SHA-256 %s, and sent were %d with %s", by, got.Size, got.SHA256, sent.Size, sent.SHA256)
	}
}

// byVirsh makes a volume and fills it, by libvirt's own client and the same daemon; --sparse
// leaves holes out, as imagectl does.
func byVirsh(host daemon.Libvirtd, f file, rawSize int64) byHand {
	const volume = "by-hand.raw"
	at := filepath.Join(host.Pool(), volume)
	virsh := func(commands string) []string {
		return []string{"virsh", "-q", "-c", "qemu+unix:///session?socket=" + host.Socket(), commands}
	}
	const name = "virsh vol-upload --sparse"
	return byHand{
		name:    name,
		command: virsh(fmt.Sprintf("vol-create-as %s %s %d --format raw; vol-upload --pool %[1]s --sparse %[2]s '%[4]s'", pool, volume, rawSize, f.Path)),
		after: func(t *testing.T) {
			whole(t, name, at, f)
			drop := virsh(fmt.Sprintf("vol-delete --pool %s %s", pool, volume))
			if out, err := exec.CommandContext(t.Context(), drop[0], drop[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", drop, err, out)
			}
		},
	}
}

// bySSH writes the disk of the rescue system as the provider's community does by hand, with and
// without reading it back, which imagectl always does; and as curl puts a file through SSH.
func bySSH(t *testing.T, sshd daemon.SSHD, keys, disk string, f file, rawSize int64) []byHand {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(sshd.Address)
	if err != nil {
		t.Fatal(err)
	}
	ssh := fmt.Sprintf("ssh -F none -i '%s' -p %s -l %s -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR %s", key, port, sshd.User, host)
	pack := fmt.Sprintf("zstd -q -1 -T0 -c '%s' | %s ", f.Path, ssh)
	const unpack = "set -e; blkdiscard /dev/sda; zstd -dc | dd of=/dev/sda bs=4M iflag=fullblock conv=sparse,fsync,nocreat status=none"
	readBack := fmt.Sprintf("head -c %d /dev/sda | ", rawSize)
	var out []byHand
	for _, how := range []struct{ name, script string }{
		{"zstd | ssh dd", pack + `"` + unpack + `"`},
		{"zstd | ssh dd, sha256sum", pack + `"` + unpack + "; " + readBack + `sha256sum"`},
		// What curl can put the file with where there is nothing but SSH.
		{"curl scp, sync, openssl dgst", fmt.Sprintf("curl -sS -k --key '%s' --pubkey '%[1]s.pub' -u %s: -T '%s' scp://%s/dev/sda; %s ", key, sshd.User, f.Path, sshd.Address, ssh) +
			`"set -e; sync /dev/sda; ` + readBack + `openssl dgst -sha256 -r"`},
	} {
		out = append(out, byHand{
			name:    how.name,
			command: []string{"bash", "-c", "set -e -o pipefail; " + how.script},
			// Each upload puts its own key there.
			before: func(t *testing.T) {
				if err := os.WriteFile(keys, public, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			after: func(t *testing.T) { whole(t, how.name, disk, f) },
		})
	}
	return out
}
