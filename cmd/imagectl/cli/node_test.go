package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func TestWhichPodIsMeant(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"etcd-cp1": "kube-system etcd-cp1 ", "shop/db-0": "shop db-0 ", "shop/db-0/postgres": "shop db-0 postgres",
		"a/b/c/d": `"a/b/c/d" is none of POD, NAMESPACE/POD and NAMESPACE/POD/CONTAINER`,
	} {
		var req api.ContainerLogsRequest
		got := ""
		if err := podOf(s, &req); err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprintf("%s %s %s", req.GetNamespace(), req.GetPod(), req.GetContainer())
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", s, got, want)
		}
	}
}

func TestSizesAndTimes(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint64]string{0: "0", 1023: "1023", 1024: "1.0K", 1536: "1.5K", 10 << 20: "10M", 1023 << 20: "1.0G", 8 << 30: "8.0G", 1 << 63: "8.0E"} {
		if got := bytesOf(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
	for _, c := range []struct {
		part, of uint64
		want     string
	}{{0, 0, "-"}, {0, 10, "0%"}, {1, 1000, "1%"}, {10, 10, "100%"}} {
		if got := percent(c.part, c.of); got != c.want {
			t.Errorf("%d of %d: got %s, want %s", c.part, c.of, got, c.want)
		}
	}
	if got := span(durationpb.New(-1500 * time.Microsecond)); got != "-1.5ms" {
		t.Errorf("got %s", got)
	}
	begin := time.Unix(1_700_000_000, 0)
	rows := timeRows(&api.TimeResponse{Now: timestamppb.New(begin.Add(3 * time.Second)), Note: "nobody says"}, begin, begin.Add(2*time.Second))
	if got := fmt.Sprint(rows[1:4]); got != "[[ahead of this machine's 2s (give or take 1s)] [kept no: the kernel says that nobody keeps it] [source nobody says]]" {
		t.Errorf("got %s", got)
	}
}

// What is written is whole or not there, private, and never in place of something else.
func TestToFile(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	name := filepath.Join(t.TempDir(), "x")
	write := func(w io.Writer) error { _, err := io.WriteString(w, "all"); return err }
	if err := toFile(Stdio{Out: &out}, "-", write); err != nil || out.String() != "all" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	broken := errors.New("it broke off")
	if err := toFile(Stdio{}, name, func(w io.Writer) error { return errors.Join(write(w), broken) }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(name)); err != nil || len(left) != 0 {
		t.Errorf("left is %v, %v", left, err)
	}
	if err := toFile(Stdio{}, name, write); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 || st.Size() != 3 {
		t.Errorf("got %v, %v", st, err)
	}
	if err := toFile(Stdio{}, name, write); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("got %v", err)
	}
}

func TestSupportKeyIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("IMAGECTL_CONFIG", filepath.Join(dir, "context.json"))
	first, path, err := supportKey()
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := supportKey()
	if err != nil || second != first {
		t.Errorf("got %s, then %s, %v", first, second, err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", st, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := age.ParseX25519Identity(strings.TrimSpace(string(b))); err != nil || key.Recipient().String() != first {
		t.Errorf("got %v, %v", key, err)
	}
	if err := os.WriteFile(path, []byte("garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := supportKey(); err == nil || !strings.HasPrefix(err.Error(), "reading "+path) {
		t.Errorf("got %v", err)
	}
}

func TestANodeThatDoesNotAnswerIsFoundOut(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if !answers(t.Context(), l.Addr().String()) {
		t.Error("it does answer")
	}
	l.Close()
	if answers(t.Context(), l.Addr().String()) {
		t.Error("nobody is there")
	}
	var w way
	if err := w.Set("pigeon"); err == nil || err.Error() != `way "pigeon" is not known; auto, direct and server are` {
		t.Errorf("got %v", err)
	}
}
