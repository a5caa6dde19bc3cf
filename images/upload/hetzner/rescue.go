package hetzner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/ssh"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/sshconn"
)

// disk is the first one of a server, in its rescue system.
const disk = "/dev/sda"

// writeCommand is what the rescue system is asked for: standard input is the disk,
// packed; standard output is the SHA-256 of what is on the disk afterwards. What is
// not written reads as zeroes, which the digest proves. openssl uses the processor's
// instructions for SHA-256, which Debian's sha256sum does not; both print the digest first.
func writeCommand(unpack string, size int64) string {
	return fmt.Sprintf("bash -c 'set -euo pipefail; blkdiscard %[1]s; %[2]s | dd of=%[1]s bs=4M iflag=fullblock conv=sparse,fsync,nocreat status=none; blockdev --flushbufs %[1]s; head -c %[3]d %[1]s | if command -v openssl >/dev/null; then openssl dgst -sha256 -r; else sha256sum; fi'", disk, unpack, size)
}

// unpacker is the program for a format; a raw image is packed here.
func unpacker(f store.Format) string {
	switch {
	case strings.HasSuffix(string(f), ".xz"):
		return "xz -dc"
	case strings.HasSuffix(string(f), ".gz"):
		return "gzip -dc"
	}
	return "zstd -dc"
}

// write fills the server's disk and compares what is there then.
func (t *Target) write(ctx context.Context, address string, key ssh.Signer, img upload.Image, ev upload.Events) error {
	client, err := t.login(ctx, net.JoinHostPort(address, "22"), key, ev)
	if err != nil {
		return fmt.Errorf("connecting to the rescue system: %w", err)
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	digest, err := send(client, img, ev)
	if err != nil {
		return fmt.Errorf("writing the disk: %w", upload.CallError(ctx, err))
	}
	if digest != img.Digest {
		return fmt.Errorf("writing the disk: %w: it reads as %q, and the image has the SHA-256 %s", upload.ErrServer, digest, img.Digest)
	}
	return nil
}

// login connects as soon as the rescue system is up. Nothing tells its host key
// beforehand; what it is, is said.
func (t *Target) login(ctx context.Context, address string, key ssh.Signer, ev upload.Events) (*ssh.Client, error) {
	ev(upload.Event{Phase: "waiting for the rescue system"})
	conf := &ssh.ClientConfig{
		User: t.conf.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: func(_ string, _ net.Addr, host ssh.PublicKey) error {
			ev(upload.Event{Phase: "waiting for the rescue system", Note: "the rescue system's key, which nothing here can check, is " + ssh.FingerprintSHA256(host)})
			return nil
		},
	}
	var last error
	for range t.conf.Connects {
		client, err := sshconn.Dial(ctx, t.conf.Dial, address, conf)
		if err == nil {
			return client, nil
		}
		if ctx.Err() != nil {
			return nil, upload.CallError(ctx, err)
		}
		last = err
		if err := t.conf.Wait(ctx, poll); err != nil {
			return nil, upload.CallError(ctx, errors.Join(err, last))
		}
	}
	return nil, fmt.Errorf("%w: it did not answer in %d tries: %w", upload.ErrServer, t.conf.Connects, last)
}

// send runs the command with the image on its standard input, and returns the
// digest that it says.
func send(client *ssh.Client, img upload.Image, ev upload.Events) (string, error) {
	session, err := client.NewSession()
	if err != nil {
		return "", err
	}
	defer session.Close()
	in, err := session.StdinPipe()
	if err != nil {
		return "", err
	}
	var out, said bytes.Buffer
	session.Stdout, session.Stderr = &out, &said
	if err := session.Start(writeCommand(unpacker(img.Format), img.RawSize)); err != nil {
		return "", err
	}
	// What the command says comes first: that it ended is why nothing can be sent.
	sent := pack(in, img, ev)
	if err := session.Wait(); err != nil {
		var exit *ssh.ExitError
		if errors.As(err, &exit) {
			return "", fmt.Errorf("%w: the rescue system says: %s (%w)", upload.ErrServer, strings.TrimSpace(said.String()), err)
		}
		return "", errors.Join(err, sent)
	}
	if sent != nil {
		return "", sent
	}
	digest, _, _ := strings.Cut(out.String(), " ")
	return digest, nil
}

// pack sends a file, compressed if it is not, and closes.
func pack(to io.WriteCloser, img upload.Image, ev upload.Events) error {
	from := &counted{r: io.NewSectionReader(img.File, 0, img.Size), total: img.Size, ev: ev}
	if img.Format != store.Raw {
		_, err := io.Copy(to, from)
		return errors.Join(err, to.Close())
	}
	z, err := zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return errors.Join(err, to.Close())
	}
	_, err = io.Copy(z, from)
	return errors.Join(err, z.Close(), to.Close())
}

// counted says how much was read.
type counted struct {
	r           io.Reader
	done, total int64
	ev          upload.Events
}

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.done += int64(n)
	c.ev(upload.Event{Phase: "sending", Done: c.done, Total: c.total})
	return n, err
}
