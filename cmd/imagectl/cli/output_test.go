package cli

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// What machines say of themselves reaches an operator's terminal as text only, and
// one machine stays one line.
func TestTablesHoldNoControlCharacters(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	err := printMachines(&out, time.Now(), []*api.MachineView{{Name: "w1\x1b[2J", Role: "worker", State: "enrolled",
		Steps: []*api.StepStatus{{Name: "kubeadm-join", State: api.StepStatus_STATE_FAILED, Detail: "line one\nline\ttwo \x1b]0;owned\x07\u009b2J \u202ekcab"}}}})
	if err != nil {
		t.Fatal(err)
	}
	want := "NAME    ROLE    STATE     ADDRESS  CODE  SEEN  WHAT\n" +
		"w1 [2J  worker  enrolled  -        -     -     kubeadm-join failed: line one line two  ]0;owned  2J  kcab\n"
	if out.String() != want {
		t.Errorf("got\n%q, want\n%q", out.String(), want)
	}
}

func TestJournalLinesHoldNoControlSequences(t *testing.T) {
	t.Parallel()
	if got, want := text("a\tb\nc\x1b[31m\r\x00\u009bd ü"), "a\tb\nc [31m   d ü"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Ctrl-C answers a question too.
func TestAQuestionEndsWithTheContext(t *testing.T) {
	t.Parallel()
	in, silent := io.Pipe()
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if line, err := readLine(ctx, in); line != "" || !errors.Is(err, context.Canceled) {
		t.Errorf("got %q, %v", line, err)
	}
	for text, want := range map[string]string{"yes\nno\n": "yes\n", "yes": "yes", "": ""} {
		if line, err := readLine(t.Context(), strings.NewReader(text)); line != want || err != nil {
			t.Errorf("of %q: got %q, %v, want %q", text, line, err, want)
		}
	}
}
