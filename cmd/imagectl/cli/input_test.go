package cli

import (
	"strings"
	"testing"
)

func TestTooMuchInputIsRefusedAndNotCut(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		size int
		want string // of the error
	}{{maxInput, ""}, {maxInput + 1, "reading standard input: it has more than 16 MiB"}} {
		got, err := readInput(&globals{stdio: Stdio{In: strings.NewReader(strings.Repeat("x", tt.size))}}, "-")
		if tt.want == "" && (err != nil || len(got) != tt.size) || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%d bytes: %d were read, error %v", tt.size, len(got), err)
		}
	}
}
