package staging

import (
	"context"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// Direct is a Source for files that somebody else has put where the platform reads:
// a URL, or a directory of the platform's own, to which their names are added.
type Direct string

// Stage implements upload.Source.
func (d Direct) Stage(_ context.Context, w upload.Wanted, _ upload.Journal, _ upload.Events) (string, func(), error) {
	return strings.TrimRight(string(d), "/") + "/" + w.Name, func() {}, nil
}

// Clean implements upload.Source: it leaves nothing.
func (Direct) Clean(context.Context, upload.Leftover) (bool, error) { return false, nil }

var (
	_ upload.Source = (*Server)(nil)
	_ upload.Source = Direct("")
)
