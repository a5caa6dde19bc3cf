package bmc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/stmcginnis/gofish/schemas"
)

// override is what is sent of a system's Boot property. Only what is set is.
type override struct {
	Enabled schemas.BootSourceOverrideEnabled `json:"BootSourceOverrideEnabled,omitempty"`
	Target  schemas.BootSource                `json:"BootSourceOverrideTarget,omitempty"`
	Mode    schemas.BootSourceOverrideMode    `json:"BootSourceOverrideMode,omitempty"`
}

// BootOnce implements Controller.
func (r *redfish) BootOnce(ctx context.Context, d Device) error {
	target, ok := map[Device]schemas.BootSource{PXE: schemas.PxeBootSource, HTTP: schemas.UefiHTTPBootSource, CD: schemas.CdBootSource}[d]
	if !ok {
		return fmt.Errorf("booting once: there is no device %q", string(d))
	}
	var shown schemas.Boot
	for try := 1; try <= 2; try++ {
		s, err := r.system(ctx)
		if err != nil {
			return err
		}
		if offered := s.Boot.AllowableBootSourceOverrideTargetValues; len(offered) > 0 && !slices.Contains(offered, target) {
			return &Error{BMC: r.name, Call: r.calls.call(), Answer: fmt.Sprintf("it cannot boot from %s once; it offers %v", target, offered), Hint: "set bmc.boot to one of these (pxe, http)"}
		}
		send, needed := r.override(s.Boot, target)
		if !needed && try == 1 {
			return nil
		}
		if err := r.patiently(ctx, func() error { return r.patchBoot(ctx, s, send) }); err != nil {
			return err
		}
		if shown, ok, err = r.shows(ctx, target); err != nil || ok {
			return err
		}
	}
	return &Error{BMC: r.name, Call: "PATCH " + r.path,
		Answer: fmt.Sprintf("it takes a boot from %s for the next start, and then shows %q, %q", target, string(shown.BootSourceOverrideEnabled), string(shown.BootSourceOverrideTarget)),
		Hint:   "boot it from the network by hand, and report the BMC's model and firmware"}
}

// override is what must be sent so that the next start uses target.
func (r *redfish) override(now schemas.Boot, target schemas.BootSource) (override, bool) {
	full := override{Enabled: schemas.OnceBootSourceOverrideEnabled, Target: target, Mode: now.BootSourceOverrideMode}
	if r.effect.FullOverride {
		if full.Mode == "" {
			full.Mode = schemas.UEFIBootSourceOverrideMode
		}
		return full, true
	}
	if now.BootSourceOverrideEnabled == full.Enabled && now.BootSourceOverrideTarget == target {
		return override{}, false
	}
	// Some refuse to be told "once" a second time, some to be told nothing else, and
	// many that a mode is named at all: OpenStack Ironic sends the same.
	send := override{Target: target}
	if now.BootSourceOverrideEnabled != full.Enabled {
		send.Enabled = full.Enabled
	}
	return send, true
}

// shows waits until the BMC shows an override that it took.
func (r *redfish) shows(ctx context.Context, target schemas.BootSource) (schemas.Boot, bool, error) {
	for try := 1; ; try++ {
		s, err := r.system(ctx)
		if err != nil {
			return schemas.Boot{}, false, err
		}
		b := s.Boot
		// sushy-tools shows every override as continuous.
		if b.BootSourceOverrideEnabled != schemas.DisabledBootSourceOverrideEnabled && b.BootSourceOverrideTarget == target {
			return b, true, nil
		}
		if try == showTries {
			return b, false, nil
		}
		if err := r.pause(ctx, showPause); err != nil {
			return b, false, r.failed(err)
		}
	}
}

// patchBoot changes the system, or where that cannot be changed its settings.
func (r *redfish) patchBoot(ctx context.Context, s *schemas.ComputerSystem, boot override) error {
	body := struct{ Boot override }{boot}
	err := r.patch(ctx, s.ODataID, s.ODataEtag, body)
	var refused *Error
	if !errors.As(err, &refused) || !slices.Contains([]int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented}, refused.Status) {
		return err
	}
	path := linksOf(s.RawData).Settings.Object.Path
	if path == "" {
		return err
	}
	settings, getErr := schemas.GetObject[schemas.ComputerSystem](r.api.WithContext(ctx), path)
	if getErr != nil {
		return r.failed(getErr)
	}
	return r.patch(ctx, path, settings.ODataEtag, body)
}

// patch sends a change with the tag that the resource was read with, as some
// demand (AMI, Huawei: 428), and DSP0266 allows. A refused tag (412) changed
// nothing: some write their tags in another form than they take, or take none.
func (r *redfish) patch(ctx context.Context, path, etag string, body any) error {
	forms := []string{etag}
	if strong := `"` + strings.Trim(strings.TrimPrefix(etag, "W/"), `"`) + `"`; etag != "" && strong != etag {
		forms = append(forms, strong)
	}
	if etag != "" {
		forms = append(forms, "")
	}
	var first error
	for _, form := range forms {
		headers := map[string]string{}
		if form != "" {
			headers["If-Match"] = form
		}
		resp, err := r.api.WithContext(ctx).PatchWithHeaders(path, body, headers)
		schemas.DeferredCleanupHTTPResponse(resp)
		if err == nil {
			return nil
		}
		err = r.failed(err)
		var refused *Error
		if !errors.As(err, &refused) || refused.Status != http.StatusPreconditionFailed && refused.Status != http.StatusPreconditionRequired {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}
