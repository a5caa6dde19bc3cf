package hostdir_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// server is a host whose sshd has SFTP and one directory. Debian's own judges the same
// in "make upload-test".
type server struct {
	dir    string
	listen net.Listener
	host   ssh.Signer
	user   ssh.Signer

	mu     sync.Mutex
	faults *uploadtest.Faults
	full   bool
	// short loses the last byte of all that is written.
	short bool
	conns sync.WaitGroup
}

func newKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newServer has its directory where OpenNebula's front-end may read.
func newServer(t testing.TB) *server {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "imagectl-hostdir")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{dir: dir, listen: l, host: newKey(t), user: newKey(t)}
	s.conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.conns.Wait()
		os.RemoveAll(dir)
	})
	return s
}

func (s *server) serve(conn net.Conn) {
	defer conn.Close()
	conf := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(s.user.PublicKey().Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	conf.AddHostKey(s.host)
	_, channels, requests, err := ssh.NewServerConn(conn, conf)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		ch, in, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range in {
				_ = r.Reply(r.Type == "subsystem" && strings.HasSuffix(string(r.Payload), "sftp"), nil)
			}
		}()
		d := &disk{s: s, conn: conn}
		files := sftp.NewRequestServer(ch, sftp.Handlers{FileGet: d, FilePut: d, FileCmd: d, FileList: d})
		_ = files.Serve()
		ch.Close()
	}
}

// disk carries requests out, each of which may fail as remote calls do; then the
// connection is lost.
type disk struct {
	s    *server
	conn net.Conn
}

func (d *disk) call(do func() error) error {
	d.s.mu.Lock()
	f := d.s.faults
	d.s.mu.Unlock()
	if f == nil {
		return do()
	}
	var own error
	if err := f.Call(context.Background(), func() error {
		own = do()
		return nil
	}); err != nil {
		d.conn.Close()
		return err
	}
	return own
}

// Fileread implements sftp.FileReader.
func (d *disk) Fileread(*sftp.Request) (io.ReaderAt, error) {
	return nil, sftp.ErrSSHFxPermissionDenied
}

// Filewrite implements sftp.FileWriter.
func (d *disk) Filewrite(r *sftp.Request) (w io.WriterAt, err error) {
	err = d.call(func() error {
		if filepath.Dir(r.Filepath) != d.s.dir {
			return sftp.ErrSSHFxPermissionDenied
		}
		f, err := os.OpenFile(r.Filepath, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		w = &growing{f: f, d: d}
		return err
	})
	return w, err
}

// growing is a file that is being written; its first piece is a call.
type growing struct {
	f    *os.File
	d    *disk
	once sync.Once
}

// WriteAt implements io.WriterAt.
func (g *growing) WriteAt(b []byte, at int64) (n int, err error) {
	var fault error
	g.once.Do(func() { fault = g.d.call(func() error { return nil }) })
	if fault != nil {
		return 0, fault
	}
	g.d.s.mu.Lock()
	full, short := g.d.s.full, g.d.s.short
	g.d.s.mu.Unlock()
	if full && at > 0 {
		return 0, errors.New("no space left on device")
	}
	if short {
		n, err := g.f.WriteAt(b[:len(b)-1], at)
		return n + 1, err
	}
	return g.f.WriteAt(b, at)
}

// Close implements io.Closer.
func (g *growing) Close() error { return g.f.Close() }

// Filecmd implements sftp.FileCmder.
func (d *disk) Filecmd(r *sftp.Request) error {
	return d.call(func() error {
		switch r.Method {
		case "Setstat":
			if r.AttrFlags().Permissions {
				return os.Chmod(r.Filepath, r.Attributes().FileMode())
			}
			return nil
		case "Rename":
			// OpenSSH's takes no name that is there.
			if err := os.Link(r.Filepath, r.Target); err != nil {
				return sftp.ErrSSHFxFailure
			}
			return os.Remove(r.Filepath)
		case "Remove":
			return os.Remove(r.Filepath)
		}
		return sftp.ErrSSHFxOpUnsupported
	})
}

// Filelist implements sftp.FileLister.
func (d *disk) Filelist(r *sftp.Request) (l sftp.ListerAt, err error) {
	err = d.call(func() error {
		st, err := os.Stat(r.Filepath)
		if err != nil {
			return err
		}
		l = one{st}
		return nil
	})
	return l, err
}

type one struct{ os.FileInfo }

// ListAt implements sftp.ListerAt.
func (o one) ListAt(to []os.FileInfo, at int64) (int, error) {
	if at > 0 || len(to) == 0 {
		return 0, io.EOF
	}
	to[0] = o.FileInfo
	return 1, io.EOF
}
