package opennebula_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/opennebula"
	"github.com/imagectl/imagectl/images/upload/opennebula/onedtest"
	"github.com/imagectl/imagectl/images/upload/staging"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// wait is short: what is waited for happens in this process.
func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

// stage runs the built-in server until the test ends.
func stage(t *testing.T) *staging.Server {
	t.Helper()
	l := httptest.NewUnstartedServer(nil)
	s := staging.New("http://" + l.Listener.Addr().String())
	l.Config.Handler = s
	l.Start()
	t.Cleanup(l.Close)
	return s
}

func config(t *testing.T, one *onedtest.Server) opennebula.Config {
	t.Helper()
	return opennebula.Config{
		Endpoint: one.URL, Session: onedtest.Session, Datastore: onedtest.Datastore,
		Source: stage(t), Client: &http.Client{}, Wait: wait,
		Machine: opennebula.Machine{Network: "rack", MemoryMB: 4096, VCPU: 2, Node: []byte(`{"cluster":"prod"}`)},
	}
}

func start(t *testing.T) uploadtest.Platform {
	one := onedtest.Start(t)
	conf := config(t, one)
	return uploadtest.Platform{
		RawSize: 300<<10 + 512,
		Target: func(f *uploadtest.Faults) upload.Target {
			c := conf
			c.Client = &http.Client{Transport: f.Transport(http.DefaultTransport)}
			return opennebula.New(c)
		},
		Patient: func(f *uploadtest.Faults) upload.Target {
			c := conf
			c.Client = &http.Client{Transport: f.Transport(http.DefaultTransport)}
			return opennebula.New(c)
		},
		Repeats: asks,
		Stranger: func() upload.Target {
			c := conf
			c.Session = "ops:wrong"
			return opennebula.New(c)
		},
		Leftovers:  func() ([]string, error) { return one.Images(onedtest.Session), nil },
		Unprovable: []string{"stored bytes"},
		Plant:      one.Plant,
		Fill:       func() { one.Fill(0) },
		Quota:      func() { one.Quota(0) },
		Use:        func(o upload.Object) error { return one.Use(o.ID) },
		Hold:       one.Hold,
		Release:    one.Release,
		Settle:     one.Settle,
		Waits:      true,
		Later: func(f *uploadtest.Faults) upload.Target {
			// What is left is in state ERROR, however young it is.
			c := conf
			c.Client = &http.Client{Transport: f.Transport(http.DefaultTransport)}
			return opennebula.New(c)
		},
		Changed: func(f *uploadtest.Faults) upload.Target {
			c := conf
			c.Client = &http.Client{Transport: f.Transport(http.DefaultTransport)}
			c.Machine = opennebula.Machine{Network: "dmz", MemoryMB: 8192, VCPU: 4, Firmware: "/usr/share/OVMF/OVMF_CODE_4M.fd", Node: []byte(`{"cluster":"prod","ca":"new"}`)}
			return opennebula.New(c)
		},
		Template: func() (string, error) { return one.Template(onedtest.Session, "prod-worker"), nil },
		// base64 of {"cluster":"prod","ca":"new"}
		Options: []string{"<NETWORK>dmz<", "<MEMORY>8192<", "<VCPU>4<", "OVMF_CODE_4M", "<IMAGECTL_NODE>eyJjbHVzdGVyIjoicHJvZCIsImNhIjoibmV3In0=<"},
	}
}

// asks: a call that changes nothing.
func asks(r *http.Request) bool {
	body, err := r.GetBody()
	if err != nil {
		return false
	}
	text, err := io.ReadAll(body)
	return err == nil && regexp.MustCompile(`<methodName>one\.([a-z]+\.info|system\.version)</methodName>`).Match(text)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	uploadtest.Run(t, start)
}
