package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stmcginnis/gofish"
	"github.com/stmcginnis/gofish/schemas"
)

const (
	// busyTries and busyPause are for answers that mean "later": iDRAC10 was seen to
	// need a minute (OpenStack Ironic, conf/redfish.py).
	busyTries = 8
	busyPause = 10 * time.Second
	// showTries and showPause are how long a BMC may take to show what it took.
	showTries = 5
	showPause = 3 * time.Second
)

// redfish is a login at a Redfish service.
type redfish struct {
	name   string
	api    *gofish.APIClient
	calls  *transport
	pause  Pause
	path   string // of the system
	info   Info
	effect Effect
}

func openRedfish(ctx context.Context, t Target, quirks []Quirk, pause Pause) (*redfish, error) {
	if t.TLS == nil {
		return nil, fmt.Errorf("opening %s: nothing says whose certificate to trust", t)
	}
	return loginRedfish(ctx, t, newTransport(t, pause), quirks, pause)
}

func loginRedfish(ctx context.Context, t Target, calls *transport, quirks []Quirk, pause Pause) (*redfish, error) {
	r := &redfish{name: t.String(), calls: calls, pause: pause}
	config := gofish.ClientConfig{
		Endpoint: "https://" + calls.host, Username: t.Username, Password: string(t.Password),
		ReuseConnections: true, NoModifyTransport: true,
		HTTPClient: &http.Client{
			Transport: calls, Timeout: readTries * callTime,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	// A session costs the BMC one password check, but not all have sessions, or one
	// to spare.
	var err error
	if r.api, err = gofish.ConnectContext(ctx, config); noSession(calls.call(), err) {
		config.BasicAuth = true
		r.api, err = gofish.ConnectContext(ctx, config)
	}
	if err != nil {
		calls.CloseIdleConnections()
		return nil, r.failed(err)
	}
	if err := r.find(ctx, t.System, quirks); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// noSession says that the service was reached and gave no session, though not for
// the password.
func noSession(call string, err error) bool {
	var answer *schemas.Error
	var way *url.Error
	switch {
	case err == nil || errors.As(err, &way):
		return false
	case errors.As(err, &answer):
		return strings.HasPrefix(call, http.MethodPost) && answer.HTTPReturnedStatusCode != http.StatusUnauthorized && answer.HTTPReturnedStatusCode != http.StatusForbidden
	default:
		return true // it names no place to ask for one
	}
}

// failed explains the last call's error.
func (r *redfish) failed(err error) error { return explain(r.name, r.calls.call(), err) }

// find looks for the system and for what is special about it.
func (r *redfish) find(ctx context.Context, id string, quirks []Quirk) error {
	api := r.api.WithContext(ctx)
	ids, err := members(api, systemsPath)
	if err != nil {
		return r.failed(err)
	}
	for i, path := range ids {
		ids[i] = path[strings.LastIndexByte(path, '/')+1:]
		if ids[i] == id || id == "" && len(ids) == 1 {
			r.path = path
		}
	}
	if r.path == "" {
		return &Error{BMC: r.name, Call: r.calls.call(), Answer: fmt.Sprintf("there are %d systems: %s", len(ids), shorten(strings.Join(ids, ", "))),
			Hint: "say which is the machine as bmc.system"}
	}
	found, err := r.system(ctx)
	if err != nil {
		return err
	}
	r.info = Info{
		Kind: Redfish, Vendor: api.Service.Vendor, Product: api.Service.Product,
		Manufacturer: strings.TrimSpace(found.Manufacturer), Model: strings.TrimSpace(found.Model),
	}
	if managers := linksOf(found.RawData).Links.ManagedBy; len(managers) > 0 {
		m, err := schemas.GetObject[schemas.Manager](api, managers[0].Path)
		if err != nil {
			return r.failed(err)
		}
		r.info.Manager, r.info.Firmware = m.Model, m.FirmwareVersion
	}
	r.effect = effectOf(quirks, r.info)
	return nil
}

// systemsPath is where DSP0266 has the systems.
const systemsPath = "/redfish/v1/Systems"

// members lists a collection.
func members(api *gofish.APIClient, path string) ([]string, error) {
	c, err := schemas.GetCollection(api, path)
	if err != nil {
		return nil, err
	}
	return c.ItemLinks, nil
}

// links are those of a system or manager that gofish follows in a way that hides
// what goes wrong.
type links struct {
	Links struct {
		ManagedBy []reference
	}
	VirtualMedia reference
	Settings     struct {
		Object reference `json:"SettingsObject"`
	} `json:"@Redfish.Settings"`
}

type reference struct {
	Path string `json:"@odata.id"`
}

func linksOf(raw []byte) links {
	var l links
	_ = json.Unmarshal(raw, &l) // it was read once, so it is JSON; other shapes have no links
	return l
}

// Info implements Controller.
func (r *redfish) Info() Info { return r.info }

// Close implements Controller.
func (r *redfish) Close() { r.api.Logout() }

// system reads the system as it is now.
func (r *redfish) system(ctx context.Context) (*schemas.ComputerSystem, error) {
	s, err := schemas.GetObject[schemas.ComputerSystem](r.api.WithContext(ctx), r.path)
	return s, r.failed(err)
}

// Power implements Controller.
func (r *redfish) Power(ctx context.Context) (Power, error) {
	s, err := r.system(ctx)
	if err != nil {
		return "", err
	}
	switch s.PowerState {
	case schemas.OnPowerState, schemas.PausedPowerState:
		return On, nil
	case schemas.OffPowerState:
		return Off, nil
	case schemas.PoweringOnPowerState, schemas.PoweringOffPowerState:
		return Changing, nil
	default:
		return "", &Error{BMC: r.name, Call: r.calls.call(), Answer: fmt.Sprintf("it does not say whether the machine is on (PowerState %q)", string(s.PowerState))}
	}
}

// Act implements Controller.
func (r *redfish) Act(ctx context.Context, a Action) error {
	wanted := map[Action][]schemas.ResetType{
		PowerOn:  {schemas.OnResetType, schemas.ForceOnResetType},
		PowerOff: {schemas.ForceOffResetType},
		Shutdown: {schemas.GracefulShutdownResetType},
		Reset:    {schemas.ForceRestartResetType},
	}[a]
	s, err := r.system(ctx)
	if err != nil {
		return err
	}
	offered, err := s.GetSupportedResetTypes()
	if err != nil {
		return r.failed(err)
	}
	for _, w := range wanted {
		if len(offered) > 0 && !slices.Contains(offered, w) {
			continue
		}
		return r.patiently(ctx, func() error {
			task, err := s.Reset(w)
			_ = task // the power state says when it is done
			return r.failed(err)
		})
	}
	return &Error{BMC: r.name, Call: "Reset " + string(a), Answer: fmt.Sprintf("it offers only %v", offered)}
}

// patiently asks again for as long as the BMC says that it did nothing yet.
func (r *redfish) patiently(ctx context.Context, ask func() error) error {
	for try := 1; ; try++ {
		err := ask()
		if err == nil || try == busyTries || !r.effect.busy(err) {
			return err
		}
		if waited := r.pause(ctx, busyPause); waited != nil {
			return err
		}
	}
}
