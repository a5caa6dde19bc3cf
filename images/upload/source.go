package upload

import "context"

// Source lets a platform read a file that it takes from a URL or a path only: a
// server in this process, a bucket, a directory of a host.
type Source interface {
	// Stage makes a file readable and says where, until release is called. What it
	// makes outside of this process is in the journal first. release removes that,
	// unless ctx has ended: then the platform may be reading still, and the next run
	// goes on with what is there. What release cannot remove stays in the journal.
	Stage(ctx context.Context, w Wanted, j Journal, ev Events) (at string, release func(), err error)
	// Clean removes what an upload that broke off left. mine is false, and nothing was
	// done, when the source leaves no such thing.
	Clean(ctx context.Context, left Leftover) (mine bool, err error)
}

// Wanted is a file that is to be readable.
type Wanted struct {
	// Name is what the URL or the path ends with.
	Name  string
	Image Image
	// Plain: the URL has no query, and answers HEAD as it answers GET.
	Plain bool
}

// CleanStaged is Clean of a source, which may be nil.
func CleanStaged(ctx context.Context, s Source, left Leftover) (mine bool, err error) {
	if s == nil {
		return false, nil
	}
	return s.Clean(ctx, left)
}

// ReleaseStaged does what release has to do, for sources that leave something of
// theirs elsewhere.
func ReleaseStaged(ctx context.Context, s Source, left Leftover, j Journal, ev Events) {
	if ctx.Err() != nil {
		return
	}
	_, err := s.Clean(ctx, left)
	if err == nil {
		err = j.Forget(left)
	}
	if err != nil {
		ev(Event{Phase: "removing the staged file", Note: "it is still there, and the end of this upload, the next run or a cleanup removes it: " + err.Error()})
	}
}

// LeftStaged is what an earlier run of the same upload staged; false if nothing is
// in the journal.
func LeftStaged(j Journal, kind string) (Leftover, bool) {
	for _, l := range j.Left() {
		if l.Kind == kind {
			return l, true
		}
	}
	return Leftover{}, false
}
