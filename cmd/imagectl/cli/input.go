package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/imagectl/imagectl/images/store"
)

// maxInput bounds what is read from a file or standard input at once.
const maxInput = 16 << 20

// readInput reads a file; - is standard input.
func readInput(g *globals, path string) (string, error) {
	if path != "-" {
		b, err := os.ReadFile(path)
		return string(b), err
	}
	b, err := io.ReadAll(io.LimitReader(g.stdio.In, maxInput))
	if err != nil {
		return "", fmt.Errorf("reading standard input: %w", err)
	}
	return string(b), nil
}

// openInputs opens the cache directory that lock and build fill.
func openInputs(dir string) (*store.Store, error) {
	if dir == "" {
		dir = os.Getenv("IMAGECTL_CACHE")
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("finding the cache directory: %w; give one with --cache", err)
		}
		dir = filepath.Join(user, "imagectl")
	}
	return store.Open(dir, nil)
}

// buildVersion is what the Go tool put into this program.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}
