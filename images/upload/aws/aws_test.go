package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// wait is no wait: what is waited for happens when it is asked for.
func wait(ctx context.Context, _ time.Duration) error { return ctx.Err() }

func config(f *fake, url string) Config {
	return Config{Region: region, Endpoint: url, AccessKey: accessKey, SecretKey: "secret", Transport: http.DefaultTransport, Tries: 1, Wait: wait, Now: f.clock}
}

func made(t *testing.T, c Config) *Target {
	t.Helper()
	to, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func serve(t *testing.T) (*fake, *Target) {
	t.Helper()
	f := newFake()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, made(t, config(f, server.URL))
}

func platform(t *testing.T, f *fake) uploadtest.Platform {
	t.Helper()
	locked := func(do func()) {
		f.mu.Lock()
		defer f.mu.Unlock()
		do()
	}
	return uploadtest.Platform{
		RawSize: 1<<20 + 512,
		Target: func(faults *uploadtest.Faults) upload.Target {
			c := config(f, "http://aws.test")
			c.Transport = faults.Transport(uploadtest.InProcess(f))
			return made(t, c)
		},
		Patient: func(faults *uploadtest.Faults) upload.Target {
			c := config(f, "http://aws.test")
			c.Transport, c.Tries = faults.Transport(uploadtest.InProcess(f)), 5
			return made(t, c)
		},
		// All calls name what they make, but for the one that makes the image.
		Repeats: func(r *http.Request) bool {
			body, err := r.GetBody()
			if err != nil {
				t.Error(err)
				return false
			}
			text, err := io.ReadAll(body)
			return err == nil && !strings.Contains(string(text), "Action=Register")
		},
		Stranger: func() upload.Target {
			c := config(f, "http://aws.test")
			c.Transport, c.AccessKey = uploadtest.InProcess(f), "AKIASTRANGER"
			return made(t, c)
		},
		Leftovers: func() (all []string, err error) {
			locked(func() {
				used := map[string]bool{}
				for _, i := range f.images {
					used[i.Snapshot] = true
					if i.tags["imagectl"] == "1" {
						all = append(all, i.ID)
					}
				}
				for _, s := range f.snaps {
					if s.tags["imagectl"] == "1" && !used[s.ID] {
						all = append(all, s.ID)
					}
				}
			})
			return all, nil
		},
		Plant: func() func() error {
			locked(func() {
				f.snaps["snap-theirs"] = &fakeSnap{ID: "snap-theirs", Status: "error", tags: map[string]string{"imagectl:name": "prod-worker"}}
				f.images["ami-theirs"] = &fakeImage{ID: "ami-theirs", Name: "prod-worker-1", State: "failed", Snapshot: "snap-theirs", tags: map[string]string{"imagectl:name": "prod-worker"}}
				f.params["/imagectl/other"] = []fakeParam{{Name: "/imagectl/other", Value: "ami-theirs"}}
			})
			return func() (err error) {
				locked(func() {
					if f.snaps["snap-theirs"] == nil || f.images["ami-theirs"] == nil || len(f.params["/imagectl/other"]) != 1 {
						err = errors.New("something of theirs is gone")
					}
				})
				return err
			}
		},
		Quota: func() { locked(func() { f.full = true }) },
		Use: func(o upload.Object) error {
			locked(func() { f.instances["i-1"] = o.ID })
			return nil
		},
		Absent: map[uploadtest.Case]string{
			uploadtest.Forgotten: "TestASnapshotThatNobodyFinishedIsBroken has it",
			uploadtest.Options:   "an image has no options of ours: what a machine is like is said when it is made",
			uploadtest.Full:      "Amazon names no place that could be full: what ends is a quota",
			uploadtest.CalledOff: "nothing is imported: the blocks are sent, and a snapshot that is not sealed is removed",
		},
		Settle: func() {
			locked(func() {
				for _, s := range f.snaps {
					switch {
					case s.Status == "pending" && s.sealed:
						s.Status = "completed"
					case s.Status == "pending":
						s.Status = "error" // no block came for an hour
					}
				}
			})
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform { return platform(t, newFake()) })
}

func quiet(upload.Event) {}

func TestZeroBlocksAreNotSent(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	if err := img.File.Truncate(0); err != nil {
		t.Fatal(err)
	}
	img.RawSize, img.Size = 3<<30+512, 3<<30+512
	if err := img.File.Truncate(img.Size); err != nil {
		t.Fatal(err)
	}
	// Data that is zero, data in the middle of a block, and the half block at the end.
	for at, b := range map[int64][]byte{0: make([]byte, 4096), 5*blockSize + 100: []byte("x"), 3 << 30: []byte("end")} {
		if _, err := img.File.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	o, err := target.Upload(t.Context(), img, &uploadtest.Journal{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(f.puts)
	if want := []int64{5, 3 << 30 / blockSize}; !slices.Equal(f.puts, want) {
		t.Errorf("sent are blocks %v, want %v", f.puts, want)
	}
	if s := f.snaps[f.images[o.ID].Snapshot]; s.size != 4 || string(s.blocks[5][100:102]) != "x\x00" || string(s.blocks[6144][:4]) != "end\x00" {
		t.Errorf("the snapshot has %d GiB and other bytes", s.size)
	}
}

func TestABrokenUploadGoesOnWithItsSnapshot(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	j := &uploadtest.Journal{}
	left := upload.Leftover{Kind: leftSnapshot, Name: imageName(img)}
	id, err := target.start(t.Context(), img, "TOKEN")
	if err != nil {
		t.Fatal(err)
	}
	left.ID = id
	p := progress{Token: "TOKEN"}
	if _, err := target.send(t.Context(), img, left, &p, j, quiet); err != nil {
		t.Fatal(err)
	}
	all := len(f.puts)
	f.puts = nil
	const from = 3
	for i := range f.snaps[id].blocks {
		if i >= from {
			delete(f.snaps[id].blocks, i)
			all--
		}
	}
	want := len(f.snaps[id].blocks)
	if all != want || want == 0 {
		t.Fatalf("%d blocks are there below %d, want some", want, from)
	}
	if err := note(j, left, progress{Token: "TOKEN", Blocks: from}); err != nil {
		t.Fatal(err)
	}
	o, err := target.Upload(t.Context(), img, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if f.images[o.ID].Snapshot != id || len(f.snaps) != 1 || len(f.puts) == 0 || slices.Min(f.puts) < from {
		t.Errorf("the image is of %s, want %s; sent again were blocks %v", f.images[o.ID].Snapshot, id, f.puts)
	}
}

func TestWhereBlocksEndInAnyOrderTheJournalSaysFromWhere(t *testing.T) {
	t.Parallel()
	var p progress
	saved := 0
	w := &watermark{blocks: map[int64]bool{}, sums: map[int64][32]byte{}, progress: &p, save: func() error { saved++; return nil }}
	for _, i := range []int64{2, 3, 7, 9} {
		w.begin(i)
	}
	for _, step := range []struct{ end, want int64 }{{7, 0}, {3, 0}, {2, 8}, {9, 10}} {
		if err := w.end(step.end, &[32]byte{}); err != nil || p.Blocks != step.want {
			t.Errorf("after block %d: %d, want %d, %v", step.end, p.Blocks, step.want, err)
		}
	}
	if len(w.sums) != 4 || len(w.blocks) != 0 || saved != 0 {
		t.Errorf("kept are %d sums, %d blocks; saved %d times", len(w.sums), len(w.blocks), saved)
	}
}

func TestThrottlingIsWaitedFor(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	target.conf.Tries = 5
	waited := time.Duration(0)
	target.conf.Wait = func(ctx context.Context, d time.Duration) error {
		waited += d
		return ctx.Err()
	}
	f.throttle = 4
	if _, err := target.Preflight(t.Context(), uploadtest.Image(t, store.Raw, "prod-worker", 1)); err != nil || waited != 15*time.Second {
		t.Errorf("after a wait of %s: %v", waited, err)
	}
	f.throttle = 5
	_, err := target.List(t.Context(), "")
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "RequestLimitExceeded: Amazon says") {
		t.Errorf("got %v, want ErrServer in Amazon's words", err)
	}
	f.throttle = 2
	if _, err := target.start(t.Context(), uploadtest.Image(t, store.Raw, "prod-worker", 1), "T"); err != nil {
		t.Errorf("beginning a snapshot: %v", err)
	}
}

func TestDamageIsSeen(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	o, err := target.Upload(t.Context(), img, &uploadtest.Journal{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	blocks := f.snaps[f.images[o.ID].Snapshot].blocks
	check := func(want string) {
		t.Helper()
		checks, err := target.Verify(t.Context(), o, img)
		last := checks[len(checks)-1]
		if err != nil || last.Result != upload.Bad || last.Detail != want {
			t.Errorf("got %+v %v, want %s", last, err, want)
		}
	}
	n, index := len(blocks), int64(1)
	was := blocks[index]
	blocks[index] = slices.Clone(was)
	blocks[index][77] ^= 1
	check(fmt.Sprintf("1 blocks of %d differ", n))
	delete(blocks, index)
	check(fmt.Sprintf("1 blocks of %d differ", n-1))
	blocks[index] = was
	blocks[2000] = append([]byte{1}, make([]byte, blockSize-1)...)
	check(fmt.Sprintf("1 blocks of %d differ", n+1))
}

func TestWhatIsNotOursIsLeftAlone(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	f.images["ami-x"] = &fakeImage{ID: "ami-x", Name: imageName(img), State: "available", created: f.now}
	if _, err := target.Preflight(t.Context(), img); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("a taken name: %v, want ErrTaken", err)
	}
	if err := target.Delete(t.Context(), upload.Object{ID: "ami-x"}); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("deleting theirs: %v, want ErrTaken", err)
	}
	f.snaps["snap-x"] = &fakeSnap{ID: "snap-x", Status: "error"}
	if err := target.Delete(t.Context(), upload.Object{ID: "snap-x"}); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("deleting theirs: %v, want ErrTaken", err)
	}
	delete(f.images, "ami-x")
	o, err := target.Upload(t.Context(), img, &uploadtest.Journal{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	f.params["/imagectl/prod-worker"] = []fakeParam{{Value: "ami-x"}}
	if err := target.Promote(t.Context(), o); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("promoting over theirs: %v, want ErrTaken", err)
	}
	delete(f.params, "/imagectl/prod-worker")
	if err := target.Promote(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := target.Delete(t.Context(), o); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting what is current: %v, want ErrInUse", err)
	}
	var said fakeParam
	b, err := json.Marshal(f.params["/imagectl/prod-worker"][0])
	if err != nil || json.Unmarshal(b, &said) != nil || said.Value != o.ID {
		t.Errorf("the parameter says %s", b)
	}
}

func TestASnapshotThatNobodyFinishedIsBroken(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	id, err := target.start(t.Context(), img, "T")
	if err != nil {
		t.Fatal(err)
	}
	if all, err := target.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("at once: %+v %v, want nothing", all, err)
	}
	f.now = f.now.Add(abandoned + time.Hour)
	all, err := target.List(t.Context(), "prod-worker")
	if err != nil || len(all) != 1 || !all[0].Broken || all[0].ID != id {
		t.Fatalf("a day later: %+v %v, want %s as broken", all, err, id)
	}
	if err := target.Delete(t.Context(), all[0]); err != nil || len(f.snaps) != 0 {
		t.Errorf("deleting it: %v, %d are left", err, len(f.snaps))
	}
}

func TestSettingsThatCannotBeRight(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no region", func(c *Config) { c.Region = "" }, `reading the region "": want a name like eu-central-1`},
		{"a zone", func(c *Config) { c.Region = "eu-central-1a" }, `reading the region "eu-central-1a": want a name like eu-central-1`},
		{"no secret", func(c *Config) { c.SecretKey = "" }, "reading the keys for eu-central-1: access key or secret key is empty"},
		{"another architecture", func(c *Config) { c.Arch = "riscv64" }, `reading the architecture "riscv64": want x86_64 or arm64`},
		{"Amazon's own prefix", func(c *Config) { c.Prefix = "/aws/x" }, `reading the prefix "/aws/x" of parameters: want a path like /imagectl, not below /aws or /ssm`},
		{"an endpoint with a path", func(c *Config) { c.Endpoint = "https://x/y" }, `reading the endpoint "https://x/y": want http:// or https://, a host and no path`},
	} {
		c := config(newFake(), "")
		tt.change(&c)
		if _, err := New(c); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
	for region, want := range map[string]string{"eu-central-1": "https://ebs.eu-central-1.amazonaws.com", "cn-north-1": "https://ebs.cn-north-1.amazonaws.com.cn"} {
		c := config(newFake(), "")
		c.Region = region
		if got := made(t, c).base(ebs); got != want {
			t.Errorf("%s: got %s, want %s", region, got, want)
		}
	}
}
