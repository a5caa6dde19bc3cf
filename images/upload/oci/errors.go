package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

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
