package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/imagectl/imagectl/images/upload"
)

// failed says what was being done, which kind of failure it was, and what the
// registry said.
func failed(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	var answer *transport.Error
	if !errors.As(err, &answer) || ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, upload.CallError(ctx, err))
	}
	text := answer.Error()
	for _, d := range answer.Errors {
		switch {
		case d.Code == transport.UnauthorizedErrorCode, d.Code == transport.DeniedErrorCode && !full(d.Message):
			return fmt.Errorf("%s: %w: %s", doing, upload.ErrAuth, text)
		case d.Code == transport.UnsupportedErrorCode && answer.Request != nil && answer.Request.Method == http.MethodDelete:
			return fmt.Errorf("%s: %w: %s (the registry is set up to delete nothing)", doing, upload.ErrServer, text)
		}
	}
	if full(text) {
		return fmt.Errorf("%s: %w: %s", doing, upload.ErrSpace, text)
	}
	return fmt.Errorf("%s: %w", doing, upload.StatusError(answer.StatusCode, text))
}

// keychain says what was asked when nobody answers: a program that is not there or fails is
// no failure of the registry.
type keychain struct{ authn.Keychain }

// Resolve implements authn.Keychain.
func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	a, err := k.Keychain.Resolve(r)
	if err != nil {
		return nil, fmt.Errorf("%w: asking docker's configuration for who we are at %s: %w; docker login puts that there, or set username and password", upload.ErrAuth, r.RegistryStr(), err)
	}
	return a, nil
}

// full knows how Harbor, Quay and the rest say it; the specification has no code.
func full(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "quota") || strings.Contains(text, "exceed the configured upper limit") || strings.Contains(text, "no space left on device")
}

// missing: the repository, manifest or tag does not exist.
func missing(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound
}
