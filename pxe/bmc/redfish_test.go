package bmc

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func open(t *testing.T, f *fake) Controller {
	t.Helper()
	c, err := Open(t.Context(), f.start(t), noPause)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func always() error { return nil }

func TestBootFromTheNetworkIsForOneStartOnly(t *testing.T) {
	for _, power := range []string{"Off", "On"} {
		for device, want := range map[Device]string{PXE: "Pxe", HTTP: "UefiHttp", CD: "Cd"} {
			t.Run(power+" "+string(device), func(t *testing.T) {
				t.Parallel()
				f := newFake()
				f.power, f.slow = power, 3
				c := open(t, f)
				var told []string
				if err := Boot(t.Context(), c, noPause, device, always, func(s string) { told = append(told, s) }); err != nil {
					t.Fatal(err)
				}
				if err := Cycle(t.Context(), c, noPause); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]string{want, "own order"}, f.starts()); diff != "" {
					t.Error(diff)
				}
				steps := []string{"asking for a boot from " + string(device)}
				if power == "On" {
					steps = append(steps, "switching it off")
				}
				if diff := cmp.Diff(append(steps, "switching it on"), told); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestMachineKeepsItsPowerWhenItsBootIsNoLongerWanted(t *testing.T) {
	for _, power := range []string{"Off", "On"} {
		f := newFake()
		f.power = power
		gone := errors.New("disarmed meanwhile")
		err := Boot(t.Context(), open(t, f), noPause, PXE, func() error { return gone }, func(string) {})
		if !errors.Is(err, gone) || f.state() != power || len(f.happened("reset")) != 0 {
			t.Errorf("%s: got %v, power %s, %v", power, err, f.state(), f.happened("reset"))
		}
	}
}

func TestMachineKeepsItsPowerWhenTheBMCTakesNoBoot(t *testing.T) {
	f := newFake()
	f.power, f.deaf = "On", true
	err := Boot(t.Context(), open(t, f), noPause, PXE, always, func(string) {})
	want := `: PATCH /redfish/v1/Systems/1: it takes a boot from Pxe for the next start, and then shows "Disabled", "None"; boot it from the network by hand, and report the BMC's model and firmware`
	if err == nil || !strings.HasSuffix(err.Error(), want) || f.state() != "On" || len(f.happened("reset")) != 0 {
		t.Errorf("got %v, power %s", err, f.state())
	}
}

func TestPowerIsSwitchedOnlyWhereNeeded(t *testing.T) {
	ctx := t.Context()
	f := newFake()
	f.slow = 2
	c := open(t, f)
	for _, want := range []Power{Off, On, On, Off, Off} {
		if err := Switch(ctx, c, noPause, want); err != nil {
			t.Fatal(err)
		}
		if now, err := c.Power(ctx); err != nil || now != want {
			t.Fatalf("got %v, %v, want %v", now, err, want)
		}
	}
	if diff := cmp.Diff([]string{"reset On", "reset ForceOff"}, f.happened("reset")); diff != "" {
		t.Error(diff)
	}
	if err := Restart(ctx, c); err == nil || err.Error() != "resetting the machine: it is off; switch it on instead" {
		t.Errorf("got %v", err)
	}
}

// A reply that is lost on the way says nothing about what was done.
func TestLostReplyToAResetIsNoFailure(t *testing.T) {
	f := newFake()
	f.dropsConnection["POST /redfish/v1/Systems/1/Actions/ComputerSystem.Reset"] = 1
	f.dropsConnection["GET /redfish/v1/Systems/1"] = 1
	c := open(t, f)
	if err := Switch(t.Context(), c, noPause, On); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"reset On"}, f.happened("reset")); diff != "" {
		t.Error(diff)
	}
}

func TestPowerThatNeverComesIsSaid(t *testing.T) {
	f := newFake()
	f.ignoresPower = true
	err := Switch(t.Context(), open(t, f), noPause, On)
	if err == nil || err.Error() != "waiting for the machine to be on: its BMC took the order and does not show that it is after 2m0s; look at the machine" {
		t.Errorf("got %v", err)
	}
	if n := len(f.happened("reset")); n != 2 {
		t.Errorf("it was asked %d times, want twice", n)
	}
}

func TestSessionsAreEnded(t *testing.T) {
	f := newFake()
	c, err := Open(t.Context(), f.start(t), noPause)
	if err != nil {
		t.Fatal(err)
	}
	if n := f.open(); n != 1 {
		t.Errorf("%d sessions while logged in", n)
	}
	c.Close()
	if n := f.open(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// A BMC has few places for connections.
func TestConnectionsAreGivenBack(t *testing.T) {
	t.Parallel()
	for _, password := range []Password{"s3cret", "guess"} {
		f := newFake()
		s := httptest.NewUnstartedServer(f)
		ended := make(chan struct{}, 16)
		s.Config.ConnState = func(_ net.Conn, now http.ConnState) {
			if now == http.StateClosed {
				ended <- struct{}{}
			}
		}
		s.StartTLS()
		t.Cleanup(s.Close)
		config, err := Trust{Pin: sha256.Sum256(s.Certificate().Raw)}.Config()
		if err != nil {
			t.Fatal(err)
		}
		c, err := Open(t.Context(), Target{Kind: Redfish, Address: s.Listener.Addr().String(), Username: f.user, Password: password, TLS: config}, noPause)
		if (err == nil) != (password == "s3cret") {
			t.Fatal(err)
		}
		if err == nil {
			c.Close()
		}
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Errorf("with the password %q a connection is open a minute later", string(password))
		}
	}
}

func TestServiceWithoutSessionsIsUsedToo(t *testing.T) {
	f := newFake()
	f.noSessions = true
	if p, err := open(t, f).Power(t.Context()); err != nil || p != Off {
		t.Errorf("got %v, %v", p, err)
	}
}

func TestWhatCannotBeOpenedSaysWhy(t *testing.T) {
	for name, tc := range map[string]struct {
		is   func(*fake)
		ask  func(*Target)
		want string // behind "asking redfish ADDRESS: "
	}{
		"wrong password": {
			ask:  func(t *Target) { t.Password = "guess" },
			want: "POST /redfish/v1/SessionService/Sessions: it answered 401 Unauthorized: The service denied access (Base.1.18.ResourceAtUriUnauthorized); are bmc.username and bmc.password right? Some BMCs lock an account after a few wrong tries",
		},
		"wrong password without sessions": {
			is:   func(f *fake) { f.noSessions = true },
			ask:  func(t *Target) { t.Password = "guess" },
			want: "GET /redfish/v1/Systems: it answered 401 Unauthorized: There is no valid session established with the implementation (Base.1.18.NoValidSession); are bmc.username and bmc.password right? Some BMCs lock an account after a few wrong tries",
		},
		"another certificate": {
			ask: func(t *Target) { t.TLS, _ = Trust{Pin: sha256.Sum256(nil)}.Config() },
			want: "GET /redfish/v1/: its certificate has the digest sha256:DIGEST, and sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 is pinned; " +
				"compare it with what the BMC's own page shows; if that is it, write it as bmc.tls.pin",
		},
		"unknown authority": {
			ask:  func(t *Target) { t.TLS, _ = Trust{CA: someCA()}.Config() },
			want: "GET /redfish/v1/: its certificate is not trusted: x509: certificate signed by unknown authority; BMCs sign theirs themselves: give its digest as bmc.tls.pin, or its authority as bmc.tls.ca",
		},
		"nobody there": {
			ask:  func(t *Target) { t.Address = "127.0.0.1:1" },
			want: "GET /redfish/v1/: connect: connection refused; is the address right, and is the BMC's network reachable from here?",
		},
		"several systems": {
			is:   func(f *fake) { f.systems = []string{"1", "2"} },
			want: "GET /redfish/v1/Systems: there are 2 systems: 1, 2; say which is the machine as bmc.system",
		},
		// The password must not follow a link that a BMC makes up.
		"link to another host": {
			is:   func(f *fake) { f.foreignLink = "@127.0.0.1:1" },
			want: "GET /redfish/v1/Systems/1: it points to https://127.0.0.1:xxxxx@127.0.0.1:1/redfish/v1/Systems/1, which is another host",
		},
		"always busy": {
			is:   func(f *fake) { f.unavailable = 1000 },
			want: "GET /redfish/v1/: it answered 503 Service Unavailable: The service is temporarily unavailable (Base.1.18.ServiceTemporarilyUnavailable)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			if tc.is != nil {
				tc.is(f)
			}
			target := f.start(t)
			_, port, _ := strings.Cut(target.Address, ":")
			digest := f.digest
			if tc.ask != nil {
				tc.ask(&target)
			}
			_, err := Open(t.Context(), target, noPause)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			want := strings.NewReplacer("DIGEST", digest, "PORT", port).Replace("asking " + target.String() + ": " + tc.want)
			if diff := cmp.Diff(want, err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// someCA is an authority that signed nothing here.
func someCA() []byte {
	public, private, _ := ed25519.GenerateKey(nil)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Unix(1<<33, 0)}
	der, _ := x509.CreateCertificate(nil, template, template, public, private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestPasswordIsNeverShown(t *testing.T) {
	f := newFake()
	f.systems = []string{"1", "2"}
	target := f.start(t)
	_, err := Open(t.Context(), target, noPause)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "target", target, "password", target.Password)
	target.TLS = nil
	text, _ := json.Marshal(struct{ P Password }{target.Password})
	for what, s := range map[string]string{
		"error": err.Error(), "log": log.String(), "json": string(text),
		"%v": fmt.Sprintf("%v %s", target.Password, target.Password), "%+v": fmt.Sprintf("%+v", target), "%#v": fmt.Sprintf("%#v", target),
	} {
		if strings.Contains(s, f.password) {
			t.Errorf("%s shows it: %s", what, s)
		}
	}
}

func TestMediaAreInsertedOnceAndEjected(t *testing.T) {
	ctx := context.Background()
	f := newFake()
	c := open(t, f)
	for _, image := range []string{"http://10.0.0.1/a.iso", "http://10.0.0.1/a.iso", "http://10.0.0.1/b.iso"} {
		if err := c.InsertMedia(ctx, image); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := c.EjectMedia(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"insert http://10.0.0.1/a.iso", "eject", "insert http://10.0.0.1/b.iso", "eject"}
	var got []string
	for _, l := range f.happened("") {
		if l == "eject" || strings.HasPrefix(l, "insert ") {
			got = append(got, l)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
