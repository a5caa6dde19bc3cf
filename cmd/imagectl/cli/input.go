package cli

import (
	"fmt"
	"io"
	"os"
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
