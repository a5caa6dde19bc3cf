//go:build bench

package benchupload

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/aws"
	"github.com/imagectl/imagectl/images/upload/azure"
	"github.com/imagectl/imagectl/images/upload/gcp"
	"github.com/imagectl/imagectl/images/upload/glance"
	"github.com/imagectl/imagectl/images/upload/hetzner"
	"github.com/imagectl/imagectl/images/upload/libvirt"
	"github.com/imagectl/imagectl/images/upload/oci"
	"github.com/imagectl/imagectl/images/upload/proxmox"
	"github.com/imagectl/imagectl/images/upload/proxmox/proxmoxtest"
	"github.com/imagectl/imagectl/images/upload/rest"
	"github.com/imagectl/imagectl/images/upload/s3"
	"github.com/imagectl/imagectl/images/upload/stall"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/images/upload/vsphere"
)

// job is what the process under test does.
type job struct {
	Target, Endpoint string
	// SSH is where Hetzner's rescue system listens, and User its user.
	SSH, User string
	File      file
	Format    store.Format
	// RawSize is the disk's.
	RawSize int64
	// Profile is the file for a profile of processor time; none when empty.
	Profile string
}

// report is what it says.
type report struct {
	Seconds, CPU float64
	// Peak of its resident memory in KiB.
	Peak int
	// Bytes that its connections carried, both ways.
	Bytes int64
}

// region of the clouds.
const region = "eu-central-1"

func work(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	f, err := os.Open(j.File.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if j.Target == fetched {
		begin, before := time.Now(), cpu()
		if err := serveFile(f, j); err != nil {
			return err
		}
		return say(time.Since(begin), cpu()-before, 0)
	}
	// It ends nothing: it counts.
	watch := stall.New("", time.Hour)
	to, err := j.target(watch)
	if err != nil {
		return err
	}
	// Another disk each time, or it would be there already.
	var random [32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	digest := hex.EncodeToString(random[:])
	if j.SSH != "" {
		// It is compared with the disk's, and what was there is forgotten.
		digest = j.File.SHA256
	}
	img := upload.Image{
		Name: "bench-worker", Version: "4593.2.1-" + digest[:8], Digest: digest, Format: j.Format,
		File: f, Size: j.File.Size, SHA256: j.File.SHA256, RawSize: j.RawSize,
	}
	stop, err := j.profile()
	if err != nil {
		return err
	}
	begin, before := time.Now(), cpu()
	if _, err := to.Upload(context.Background(), img, &uploadtest.Journal{}, func(upload.Event) {}); err != nil {
		return err
	}
	took, spent := time.Since(begin), cpu()-before
	return errors.Join(stop(), say(took, spent, watch.Bytes()))
}

// profile begins one, if it is wanted.
func (j job) profile() (stop func() error, err error) {
	if j.Profile == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(j.Profile)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error { pprof.StopCPUProfile(); return f.Close() }, nil
}

// say reports, with the peak of this process's memory.
func say(took time.Duration, spent float64, carried int64) error {
	r := report{Seconds: took.Seconds(), CPU: spent, Bytes: carried}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(status), "\n") {
		_, _ = fmt.Sscanf(line, "VmHWM: %d kB", &r.Peak)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func cpu() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// wait is short: what is waited for is there at once.
func wait(ctx context.Context) error { return pause(ctx, 0) }

func pause(ctx context.Context, _ time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

func (j job) target(w *stall.Watch) (upload.Target, error) {
	transport := rest.NewTransport(nil, w)
	switch kind, _, _ := strings.Cut(j.Target, ","); kind {
	case "s3":
		return s3.New(s3.Config{Endpoint: j.Endpoint, Bucket: "bench", Region: "us-east-1", AccessKey: "operator", SecretKey: "secret", Transport: transport, Now: time.Now})
	case "oci":
		return oci.New(oci.Config{Repository: strings.TrimPrefix(j.Endpoint, "http://") + "/bench", Plain: true, Transport: transport, Now: time.Now})
	case "glance":
		return glance.New(glance.Config{
			Auth:   gophercloud.AuthOptions{IdentityEndpoint: j.Endpoint + "/identity/v3", ApplicationCredentialID: "robot", ApplicationCredentialSecret: "secret"},
			Client: &http.Client{Transport: transport}, Wait: wait, Mark: rand.Text, Now: time.Now,
		})
	case "proxmox":
		return proxmox.New(proxmox.Config{
			Endpoint: j.Endpoint, Token: proxmoxtest.Token, Secret: proxmoxtest.Secret, Node: proxmoxtest.Node, Datastore: proxmoxtest.Datastore,
			Client: &http.Client{Transport: transport}, Random: rand.Reader, Now: time.Now, Wait: wait,
		})
	case "aws":
		return aws.New(aws.Config{Region: region, Endpoint: j.Endpoint, AccessKey: "AKIABENCH", SecretKey: "secret", Transport: transport, Wait: pause, Now: time.Now})
	case "azure":
		return azure.New(azure.Config{Subscription: "s", ResourceGroup: "g", Gallery: "vms", Location: "westeurope", Token: "secret", Endpoint: j.Endpoint, Transport: transport, Wait: pause, Now: time.Now})
	case "gcp":
		return gcp.New(gcp.Config{Project: "bench", Bucket: "bench", Credentials: "secret", Endpoint: j.Endpoint, Transport: transport, Wait: pause, Now: time.Now})
	case "vsphere":
		return vsphere.New(vsphere.Config{
			Endpoint: j.Endpoint, Username: "ops", Password: "secret", Datacenter: "DC0", Pool: "DC0_C0", Datastore: "LocalDS_0", Host: "DC0_C0/DC0_C0_H0",
			Network: "VM Network", Transport: transport, Random: rand.Reader, Now: time.Now, Wait: wait,
			Beat: func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			},
		})
	case "hetzner":
		return hetzner.New(hetzner.Config{
			API: j.Endpoint, Token: "secret", User: j.User, Transport: transport, Random: rand.Reader, Wait: pause, Mark: rand.Text, Now: time.Now,
			Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return w.Dialer((&net.Dialer{}).DialContext)(ctx, network, j.SSH)
			},
		})
	case "libvirt":
		return libvirt.New(libvirt.Config{
			Dial: func(ctx context.Context) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", j.Endpoint)
			},
			Driver: "qemu:///session", Pool: pool, Emulate: true, Random: rand.Reader, Now: time.Now,
		})
	}
	return nil, fmt.Errorf("there is no target %s", j.Target)
}
