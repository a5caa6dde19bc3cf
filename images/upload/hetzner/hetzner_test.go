package hetzner_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/hetzner"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// wait is short: what is waited for happens in this process.
func wait(ctx context.Context, _ time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

func config(c *cloud) hetzner.Config {
	return hetzner.Config{
		API: c.URL, Token: token, Transport: http.DefaultTransport, Tries: 1, Dial: c.dial, Random: rand.Reader, Connects: 3, Wait: wait, Mark: rand.Text, Now: time.Now,
	}
}

func target(t *testing.T, c hetzner.Config) *hetzner.Target {
	t.Helper()
	to, err := hetzner.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// leftovers are all things but those of others.
func (c *cloud) leftovers() (all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, things := range map[string][]*thing{"server": c.servers, "image": c.images, "key": c.keys} {
		for _, i := range things {
			if i.id > 1000 {
				all = append(all, fmt.Sprintf("%s %d %v", what, i.id, i.props["description"]))
			}
		}
	}
	return all
}

func TestConformance(t *testing.T) {
	t.Parallel()
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		c := newCloud(t)
		conf := config(c)
		return uploadtest.Platform{
			RawSize: 300<<10 + 512,
			Target: func(f *uploadtest.Faults) upload.Target {
				mine := conf
				mine.Transport = f.Transport(uploadtest.InProcess(c))
				mine.Dial = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
					ferr := f.Call(ctx, func() error {
						conn, err = c.dial(ctx, network, address)
						return err
					})
					if conn == nil {
						return nil, ferr
					}
					if ferr != nil {
						conn.Close()
					}
					return f.Conn(conn), ferr
				}
				return target(t, mine)
			},
			Patient: func(f *uploadtest.Faults) upload.Target {
				mine := conf
				mine.Transport, mine.Tries = f.Transport(uploadtest.InProcess(c)), 5
				return target(t, mine)
			},
			Repeats: func(r *http.Request) bool { return r.Method != http.MethodPost },
			Stranger: func() upload.Target {
				theirs := conf
				theirs.Token = "wrong"
				return target(t, theirs)
			},
			Leftovers:  func() ([]string, error) { return c.leftovers(), nil },
			Unprovable: []string{"stored bytes"},
			Plant:      c.plant,
			Use:        func(o upload.Object) error { return c.protect(o.ID) },
			Absent: map[uploadtest.Case]string{
				uploadtest.Forgotten: "TestAnAbandonedServerIsFoundWithoutAJournal has it",
				uploadtest.Options:   "an image has no options of ours: what a machine is like is said when it is made",
				uploadtest.Full:      "Hetzner names no place that could be full: what ends is the number of servers or snapshots",
				uploadtest.CalledOff: "nothing is imported: the disk is written by this process, and its server is removed",
			},
			Quota: func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.limit = true
			},
		}
	})
}

func uploaded(t *testing.T, to upload.Target, img upload.Image, ev upload.Events) (upload.Outcome, error) {
	t.Helper()
	j, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "hetzner", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	out, err := upload.Run(t.Context(), to, img, j, ev, false)
	if left := j.Left(); len(left) > 0 {
		t.Errorf("the journal still has %v", left)
	}
	return out, err
}

func TestTheSnapshotIsOfTheDisk(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.slow = true
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	var notes []string
	if _, err := uploaded(t, target(t, config(c)), img, func(e upload.Event) {
		if e.Note != "" {
			notes = append(notes, e.Note)
		}
	}); err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(io.NewSectionReader(img.File, 0, img.Size))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.images) != 1 || !bytes.Equal(c.images[0].disk, want) {
		t.Fatalf("there are %d images, or the disk is not what was sent", len(c.images))
	}
	labels := c.images[0].props["labels"].(object)
	if labels["imagectl-digest"].(string)+labels["imagectl-digest-2"].(string) != img.Digest || labels["imagectl-version"] != img.Version || c.images[0].props["description"] != "prod-worker" {
		t.Errorf("the snapshot is %v", c.images[0].props)
	}
	if !strings.Contains(strings.Join(notes, "\n"), "which nothing here can check, is SHA256:") {
		t.Errorf("nothing was said of the host key: %q", notes)
	}
}

// What reads back as something else becomes no snapshot, and costs no money.
func TestADiskThatReadsAsAnotherIsNoSnapshot(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.spoilt = true
	_, err := uploaded(t, target(t, config(c)), uploadtest.Image(t, store.Raw, "prod-worker", 1), func(upload.Event) {})
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "and the image has the SHA-256") {
		t.Errorf("got %v", err)
	}
	if left := c.leftovers(); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

func TestWhatTheRescueSystemSaysIsShown(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	img.Format = "img.zst" // and is none
	_, err := uploaded(t, target(t, config(c)), img, func(upload.Event) {})
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "the rescue system says: zstd:") {
		t.Errorf("got %v", err)
	}
	if left := c.leftovers(); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

// A server that nobody deleted is listed after a day, and a cleanup deletes it.
func TestAnAbandonedServerIsFoundWithoutAJournal(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	conf := config(c)
	now := time.Now()
	conf.Now = func() time.Time { return now }
	to := target(t, conf)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	faults := &uploadtest.Faults{}
	dying := conf
	dying.Transport = faults.Transport(http.DefaultTransport)
	// From the first connection on there is nobody any more.
	dying.Dial = func(context.Context, string, string) (net.Conn, error) {
		faults.Fail(1, uploadtest.Refused, true)
		cancel()
		return nil, errors.New("the process died")
	}
	j, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "hetzner", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := upload.Run(ctx, target(t, dying), img, j, func(upload.Event) {}, false); err == nil {
		t.Fatal("an upload that died says that it is done")
	}
	if left := c.leftovers(); len(left) != 2 {
		t.Fatalf("left is %v", left)
	}
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{23 * time.Hour, 0}, {time.Hour, 1}} {
		now = now.Add(tt.after)
		all, err := to.List(t.Context(), "prod-worker")
		if err != nil || len(all) != tt.want || tt.want > 0 && (!all[0].Broken || !strings.HasPrefix(all[0].ID, "server/")) {
			t.Errorf("after %s: %+v, %v", tt.after, all, err)
		}
	}
	if _, err := upload.Cleanup(t.Context(), to, t.TempDir(), "hetzner"); err != nil {
		t.Error(err)
	}
	if left := c.leftovers(); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

func TestALabelThatHetznerRefusesIsRefusedHere(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	img.Labels["cluster"] = strings.Repeat("x", 64)
	if _, err := target(t, config(c)).Preflight(t.Context(), img); err == nil || !strings.Contains(err.Error(), "up to 63 letters") {
		t.Errorf("got %v", err)
	}
}
