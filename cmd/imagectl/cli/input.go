package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxInput bounds what is read from standard input, in bytes.
const maxInput = 16 << 20

// readInput reads a file; - is standard input.
func readInput(g *globals, path string) (string, error) {
	if path != "-" {
		b, err := os.ReadFile(path)
		return string(b), err
	}
	b, err := io.ReadAll(io.LimitReader(g.stdio.In, maxInput+1))
	if err != nil {
		return "", fmt.Errorf("reading standard input: %w", err)
	}
	if len(b) > maxInput {
		return "", usageError{fmt.Errorf("reading standard input: it has more than %d MiB", maxInput>>20)}
	}
	return string(b), nil
}

// readLine reads a person's answer; the end of input ends it too. A read from a
// terminal cannot be called back, so when ctx ends it is left behind: the process
// ends with it.
func readLine(ctx context.Context, in io.Reader) (string, error) {
	type answer struct {
		line string
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(in).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		read <- answer{line, err}
	}()
	select {
	case a := <-read:
		return a.line, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
