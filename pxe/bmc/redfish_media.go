package bmc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/stmcginnis/gofish/schemas"
)

// slot finds the virtual CD.
func (r *redfish) slot(ctx context.Context) (*schemas.VirtualMedia, error) {
	s, err := r.system(ctx)
	if err != nil {
		return nil, err
	}
	own := linksOf(s.RawData)
	places := []string{own.VirtualMedia.Path}
	api := r.api.WithContext(ctx)
	for _, m := range own.Links.ManagedBy {
		manager, err := schemas.GetObject[schemas.Manager](api, m.Path)
		if err != nil {
			return nil, r.failed(err)
		}
		places = append(places, linksOf(manager.RawData).VirtualMedia.Path)
	}
	if r.effect.MediaUnderManager {
		slices.Reverse(places)
	}
	seen := 0
	for _, place := range places {
		if place == "" {
			continue
		}
		paths, err := members(api, place)
		if err != nil {
			return nil, r.failed(err)
		}
		for _, path := range paths {
			m, err := schemas.GetObject[schemas.VirtualMedia](api, path)
			if err != nil {
				return nil, r.failed(err)
			}
			seen++
			disc := slices.ContainsFunc(m.MediaTypes, func(t schemas.VirtualMediaType) bool {
				return t == schemas.CDVirtualMediaType || t == schemas.DVDVirtualMediaType
			})
			if disc && (r.effect.MediaSlot == "" || m.ID == r.effect.MediaSlot) {
				return m, nil
			}
		}
	}
	return nil, &Error{BMC: r.name, Call: r.calls.call(), Answer: fmt.Sprintf("it has %d virtual media, and no CD among them that works", seen), Hint: "some need a licence for it"}
}

// InsertMedia implements Controller.
func (r *redfish) InsertMedia(ctx context.Context, image string) error {
	if u, err := url.Parse(image); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("inserting media at %s: %q is not an http(s) URL", r.name, image)
	} else if r.effect.PlainMediaURL && (u.RawQuery != "" || strings.Contains(u.Path, ":")) {
		return fmt.Errorf("inserting media at %s: this BMC does not understand a query or a colon in %q; serve it under a plain name", r.name, image)
	}
	m, err := r.slot(ctx)
	if err != nil {
		return err
	}
	if m.Inserted != nil && *m.Inserted || m.Image != "" {
		if m.Image == image && !r.effect.StaleMedia {
			return nil
		}
		if err := r.eject(ctx, m); err != nil {
			return err
		}
	}
	yes := true
	params := &schemas.VirtualMediaInsertMediaParameters{Image: image, Inserted: &yes, WriteProtected: &yes}
	err = r.insert(ctx, m, params)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == http.StatusBadRequest {
		// Older services know only the image.
		_, err = m.InsertMedia(&schemas.VirtualMediaInsertMediaParameters{Image: image})
		err = r.failed(err)
	}
	if err != nil {
		return err
	}
	return r.until(ctx, m.ODataID, "shows no media after it took "+image, func(m *schemas.VirtualMedia) bool {
		return m.Inserted != nil && *m.Inserted || m.Inserted == nil && m.Image != ""
	})
}

// insert asks for an insertion, again where an ejection may still be under way.
func (r *redfish) insert(ctx context.Context, m *schemas.VirtualMedia, params *schemas.VirtualMediaInsertMediaParameters) error {
	for try := 1; ; try++ {
		err := r.patiently(ctx, func() error {
			_, err := m.InsertMedia(params)
			return r.failed(err)
		})
		var refused *Error
		if !r.effect.StaleMedia || try == showTries || !errors.As(err, &refused) || refused.Status != http.StatusInternalServerError {
			return err
		}
		if waited := r.pause(ctx, showPause); waited != nil {
			return err
		}
	}
}

// EjectMedia implements Controller.
func (r *redfish) EjectMedia(ctx context.Context) error {
	m, err := r.slot(ctx)
	if err != nil {
		return err
	}
	if (m.Inserted == nil || !*m.Inserted) && m.Image == "" {
		return nil
	}
	return r.eject(ctx, m)
}

func (r *redfish) eject(ctx context.Context, m *schemas.VirtualMedia) error {
	err := r.patiently(ctx, func() error {
		_, err := m.EjectMedia()
		return r.failed(err)
	})
	if err != nil || r.effect.StaleMedia {
		return err // what a BMC shows that shows too much is not worth waiting for
	}
	return r.until(ctx, m.ODataID, "still shows media after it ejected them", func(m *schemas.VirtualMedia) bool {
		return m.Inserted == nil || !*m.Inserted
	})
}

// until waits until media are as they shall be.
func (r *redfish) until(ctx context.Context, path, otherwise string, as func(*schemas.VirtualMedia) bool) error {
	for try := 1; ; try++ {
		m, err := schemas.GetObject[schemas.VirtualMedia](r.api.WithContext(ctx), path)
		switch {
		case err != nil:
			return r.failed(err)
		case as(m):
			return nil
		case try == showTries:
			return &Error{BMC: r.name, Call: r.calls.call(), Answer: "it " + otherwise}
		}
		if err := r.pause(ctx, showPause); err != nil {
			return r.failed(err)
		}
	}
}
