package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Peak runs a program to its end and returns how many KiB it had in memory at the most, and
// what it said. GNU's time asks the kernel for it: a test that started the program itself would
// be told of its own memory, which a child of Go's begins with. Fewer than 4 MiB are an error:
// no program of Go's has less.
func Peak(ctx context.Context, t testing.TB, env []string, argv ...string) (kib int, said string, err error) {
	t.Helper()
	peak := filepath.Join(t.TempDir(), "peak")
	cmd := exec.CommandContext(ctx, "time", append([]string{"--quiet", "--format", "%M", "--output", peak}, argv...)...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return 0, out.String(), err
	}
	b, err := os.ReadFile(peak)
	if err != nil {
		return 0, out.String(), err
	}
	if _, err := fmt.Sscan(string(b), &kib); err != nil || kib < 4<<10 {
		return 0, out.String(), fmt.Errorf("time says that %s had %q KiB: %v", argv[0], b, err)
	}
	return kib, out.String(), nil
}
