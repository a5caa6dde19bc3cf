package azure

import (
	"context"
	"errors"
	"fmt"
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

func config(f *fake) Config {
	return Config{
		Subscription: "sub", ResourceGroup: "images", Gallery: "vms", Location: "westeurope", Tenant: "tenant", ClientID: "app", ClientSecret: secret,
		Endpoint: f.url, Login: f.url, Transport: http.DefaultTransport, Tries: 1, Wait: wait, Now: f.clock,
	}
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
	f.url = server.URL
	return f, made(t, config(f))
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
			c := config(f)
			c.Transport = faults.Transport(uploadtest.InProcess(f))
			return made(t, c)
		},
		Patient: func(faults *uploadtest.Faults) upload.Target {
			c := config(f)
			c.Transport, c.Tries = faults.Transport(uploadtest.InProcess(f)), 5
			return made(t, c)
		},
		Repeats: func(r *http.Request) bool { return r.Method != http.MethodPost },
		Stranger: func() upload.Target {
			c := config(f)
			c.Transport, c.ClientSecret = uploadtest.InProcess(f), "guessed"
			return made(t, c)
		},
		Leftovers: func() (all []string, err error) {
			locked(func() {
				for name, d := range f.disks {
					if d.tags["imagectl"] == "1" {
						all = append(all, name)
					}
				}
				for id, v := range f.versions {
					if tags := v.doc["tags"].(map[string]any); tags["imagectl"] == "1" {
						all = append(all, id)
					}
				}
			})
			return all, nil
		},
		Plant: func() func() error {
			theirs := map[string]any{"location": "westeurope", "tags": map[string]any{}, "properties": map[string]any{"publishingProfile": map[string]any{"excludeFromLatest": false}}}
			locked(func() {
				f.families["prod-worker"] = map[string]any{"properties": map[string]any{"osType": "Linux", "hyperVGeneration": "V2", "provisioningState": "Succeeded"}}
				f.versions["prod-worker/1.0.0"] = &fakeVersion{doc: theirs}
				f.disks["theirs"] = &fakeDisk{state: "Unattached", stage: "Succeeded"}
			})
			return func() (err error) {
				locked(func() {
					if f.versions["prod-worker/1.0.0"] == nil || f.disks["theirs"] == nil || theirs["properties"].(map[string]any)["publishingProfile"].(map[string]any)["excludeFromLatest"] != false {
						err = errors.New("something of theirs is gone or changed")
					}
				})
				return err
			}
		},
		Quota: func() { locked(func() { f.full = true }) },
		Use: func(o upload.Object) error {
			locked(func() {
				image := map[string]any{"id": strings.ToUpper(base) + "galleries/vms/images/" + strings.Replace(o.ID, "/", "/versions/", 1)}
				f.machines = append(f.machines, map[string]any{"name": "web", "properties": map[string]any{"virtualMachineProfile": map[string]any{"storageProfile": map[string]any{"imageReference": image}}}})
			})
			return nil
		},
		Absent: map[uploadtest.Case]string{
			uploadtest.Forgotten: "TestADiskThatNobodyFinishedIsBroken has it",
			uploadtest.Options:   "an image has no options of ours: what a machine is like is said when it is made",
			uploadtest.Full:      "Azure names no place that could be full: what ends is a quota",
			uploadtest.CalledOff: "the stand-in is done with a version when it is asked how far it is; that an upload breaks off there is among the faults, which Settle ends",
		},
		Unprovable: []string{"stored bytes"},
		Settle: func() {
			locked(func() {
				for _, v := range f.versions {
					v.looks = min(v.looks, 0)
				}
			})
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		f := newFake()
		f.url = "http://azure.test"
		return platform(t, f)
	})
}

func quiet(upload.Event) {}

// begin makes a disk that is open and has some bytes.
func begin(t *testing.T, f *fake, target *Target, img upload.Image, j *uploadtest.Journal, note string) *fakeDisk {
	t.Helper()
	left := upload.Leftover{Kind: leftDisk, Name: "begun", Note: note}
	if err := j.Write(left); err != nil {
		t.Fatal(err)
	}
	path := target.diskPath("begun")
	if err := target.makeDisk(t.Context(), img, path); err != nil {
		t.Fatal(err)
	}
	if _, err := target.diskIn(t.Context(), path, waitsForBytes); err != nil {
		t.Fatal(err)
	}
	blob, err := target.openDisk(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := target.pages.send(t.Context(), img, blob, quiet); err != nil {
		t.Fatal(err)
	}
	if len(f.writes) < 2 {
		t.Fatalf("sent were %v, want several ranges", f.writes)
	}
	f.writes = nil
	return f.disks["begun"]
}

// large is an image of more than one range.
func large(t *testing.T) upload.Image {
	t.Helper()
	img := uploadtest.Image(t, store.VHD, "prod-worker", 1)
	img.RawSize, img.Size = 20<<20, 20<<20+512
	if err := img.File.Truncate(img.Size); err != nil {
		t.Fatal(err)
	}
	for at, b := range map[int64][]byte{9 << 20: []byte("x"), 16 << 20: make([]byte, 4096), 20 << 20: []byte("footer")} {
		if _, err := img.File.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

func TestOnlyRangesWithDataAreSentAndOnlyOnce(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img, j := large(t), &uploadtest.Journal{}
	d := begin(t, f, target, img, j, "")
	if string(d.pages[9<<20/512][:2]) != "x\x00" || string(d.pages[20<<20/512][:7]) != "footer\x00" || d.pages[16<<20/512] != nil || d.pages[4<<20/512] != nil {
		t.Error("the disk has other bytes")
	}
	delete(d.pages, 9<<20/512)
	if _, err := target.Upload(t.Context(), img, j, quiet); err != nil {
		t.Fatal(err)
	}
	if want := []string{"8388608+4194304"}; !slices.Equal(f.writes, want) {
		t.Errorf("sent again were %v, want %v", f.writes, want)
	}
	if len(f.disks) != 0 || len(j.Left()) != 0 {
		t.Errorf("left are %d disks and %v", len(f.disks), j.Left())
	}
}

func TestADiskThatCannotBeGoneOnWithIsMadeAnew(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		spoil func(*fake, *fakeDisk)
	}{
		{"one that Azure does not open twice", func(f *fake, _ *fakeDisk) { f.strict = true }},
		{"one that was closed half full", func(_ *fake, d *fakeDisk) { d.state, d.sas = "Unattached", "" }},
	} {
		f, target := serve(t)
		img, j := large(t), &uploadtest.Journal{}
		d := begin(t, f, target, img, j, "")
		clear(d.pages)
		tt.spoil(f, d)
		if _, err := target.Upload(t.Context(), img, j, quiet); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if len(f.writes) != 3 || len(f.disks) != 0 || len(j.Left()) != 0 {
			t.Errorf("%s: sent were %v; left are %d disks and %v", tt.name, f.writes, len(f.disks), j.Left())
		}
	}
}

func TestADiskThatHasAllBytesIsNotSentAgain(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img, j := large(t), &uploadtest.Journal{}
	d := begin(t, f, target, img, j, sent)
	d.state, d.sas = "Unattached", ""
	if _, err := target.Upload(t.Context(), img, j, quiet); err != nil || len(f.writes) != 0 {
		t.Errorf("sent were %v, %v", f.writes, err)
	}
}

func TestThrottlingIsWaitedForAsLongAsAzureSays(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	if _, err := target.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	target.manager.Tries = 5
	waited := time.Duration(0)
	target.manager.Wait = func(ctx context.Context, d time.Duration) error {
		waited += d
		return ctx.Err()
	}
	f.throttle = 4
	if _, err := target.List(t.Context(), ""); err != nil || waited != (7+7+7+8)*time.Second {
		t.Errorf("after a wait of %s: %v", waited, err)
	}
	f.throttle = 5
	if _, err := target.List(t.Context(), ""); !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "TooManyRequests: Azure says") {
		t.Errorf("got %v, want ErrServer in Azure's words", err)
	}
	if f.signIns != 1 {
		t.Errorf("signed in %d times, want once", f.signIns)
	}
}

func TestWhatIsNotOursIsLeftAlone(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img := large(t)
	o, err := target.Upload(t.Context(), img, &uploadtest.Journal{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	theirs := &fakeVersion{doc: map[string]any{"properties": map[string]any{"publishingProfile": map[string]any{"excludeFromLatest": false}}}}
	f.versions["prod-worker/9999.0.0"] = theirs
	if err := target.Promote(t.Context(), o); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("promoting below theirs: %v, want ErrTaken", err)
	}
	if err := target.Delete(t.Context(), upload.Object{ID: "prod-worker/9999.0.0"}); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("deleting theirs: %v, want ErrTaken", err)
	}
	delete(f.versions, "prod-worker/9999.0.0")
	if err := target.Promote(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := target.Delete(t.Context(), o); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting what is current: %v, want ErrInUse", err)
	}
	f.disks["theirs"] = &fakeDisk{state: "Unattached", stage: "Succeeded"}
	if err := target.Delete(t.Context(), upload.Object{ID: "disks/theirs"}); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("deleting their disk: %v, want ErrTaken", err)
	}
	other := large(t)
	other.Name, other.Digest = "prod-cp", img.Digest[:8]+strings.Repeat("0", 56)
	f.families["prod-cp"] = map[string]any{"properties": map[string]any{"osType": "Windows", "hyperVGeneration": "V2", "provisioningState": "Succeeded"}}
	if _, err := target.Upload(t.Context(), other, &uploadtest.Journal{}, quiet); !errors.Is(err, upload.ErrTaken) || len(f.disks) != 1 {
		t.Errorf("a family for Windows: %v, want ErrTaken; %d disks", err, len(f.disks))
	}
	other.Name = "prod-worker"
	if _, err := target.Preflight(t.Context(), other); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("another disk with this number: %v, want ErrTaken", err)
	}
}

func TestADiskThatNobodyFinishedIsBroken(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	begin(t, f, target, large(t), &uploadtest.Journal{}, "")
	if all, err := target.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("at once: %+v %v, want nothing", all, err)
	}
	f.now = f.now.Add(abandoned + time.Hour)
	all, err := target.List(t.Context(), "prod-worker")
	if err != nil || len(all) != 1 || !all[0].Broken || all[0].ID != "disks/begun" {
		t.Fatalf("a day later: %+v %v", all, err)
	}
	if err := target.Delete(t.Context(), all[0]); err != nil || len(f.disks) != 0 {
		t.Errorf("deleting it: %v, %d are left", err, len(f.disks))
	}
}

func TestNumbersOfVersions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ version, digest, want string }{
		{"4593.2.1-1a2b3c4d", "1a2b3c4d00", "4593.2001.219520550"},
		{"4593.2.1-ffffffff", "ffffffff00", "4593.2001.2147483647"},
		{"4600.0.0+nightly-x", "00000002", "4600.0.1"},
		{"edge", "", "0.0.0"},
	} {
		if got := number(upload.Image{Version: tt.version, Digest: tt.digest}); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.version, got, tt.want)
		}
	}
	if higher(version{Name: "4593.2001.9"}, version{Name: "4593.2001.10"}) >= 0 {
		t.Error("9 is higher than 10")
	}
}

func TestSettingsThatCannotBeRight(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no subscription", func(c *Config) { c.Subscription = "" }, `reading the subscription "": want a name`},
		{"a path for a gallery", func(c *Config) { c.Gallery = "../x" }, `reading the gallery "../x": want a name`},
		{"no secret", func(c *Config) { c.ClientSecret = "" }, `reading who signs in to tenant "tenant": want a tenant, a client's ID and its secret, or a token`},
		{"another architecture", func(c *Config) { c.Arch = "arm64" }, `reading the architecture "arm64": want x64 or Arm64`},
		{"an endpoint that is none", func(c *Config) { c.Endpoint = "azure" }, `reading the endpoint "azure": want http:// or https:// and a host`},
	} {
		c := config(newFake())
		c.Endpoint, c.Login = "", ""
		tt.change(&c)
		if _, err := New(c); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

func TestADiskOfAWrongSizeIsRefusedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	_, target := serve(t)
	img := large(t)
	img.Size--
	if _, err := target.Preflight(t.Context(), img); err == nil || !strings.Contains(err.Error(), "has whole MiB and a footer of 512 bytes; this one has 20972031 bytes") {
		t.Errorf("got %v", err)
	}
}

// Accelerated networking puts a second card behind the first, and nothing in the image
// leaves it alone yet: machines must not get it by what the definition says.
func TestTheDefinitionTakesNoAcceleratedNetworking(t *testing.T) {
	t.Parallel()
	f, tg := serve(t)
	img := uploadtest.Image(t, tg.Formats()[0], "prod-worker", 1)
	if _, err := tg.Upload(t.Context(), img, &uploadtest.Journal{}, func(upload.Event) {}); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	properties, _ := f.families["prod-worker"]["properties"].(map[string]any)
	got := fmt.Sprint(properties["features"])
	if want := "[map[name:IsAcceleratedNetworkSupported value:False]]"; got != want {
		t.Errorf("the definition's features are %s, want %s", got, want)
	}
}
