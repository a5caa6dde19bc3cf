package cli

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheContextOfAVerb(t *testing.T) {
	t.Parallel()
	one, two := serverContexts{{Cluster: "prod"}}, serverContexts{{Cluster: "lab"}, {Cluster: "prod"}}
	for _, c := range []struct {
		all           serverContexts
		asked, inFile string
		want          string
	}{
		{one, "", "", "prod"},
		{one, "", "prod", "prod"},
		{one, "prod", "lab", "prod"},
		{one, "", "lab", "error: cluster.yaml is of cluster lab, and the context file has prod: imagectl operators accept adds another one, and so does its imagectl serve; or point IMAGECTL_CONFIG to another file"},
		{two, "", "", "error: the context file has clusters lab, prod: say which with --cluster NAME, or with -f and its cluster.yaml"},
		{two, "", "lab", "lab"},
		{two, "prod", "lab", "prod"},
		{two, "qa", "lab", "error: --cluster asks for cluster qa, and the context file has lab, prod: imagectl operators accept adds another one, and so does its imagectl serve; or point IMAGECTL_CONFIG to another file"},
	} {
		got, err := c.all.choose(c.asked, c.inFile, "cluster.yaml")
		text := got.Cluster
		if err != nil {
			text = "error: " + err.Error()
		}
		if text != c.want {
			t.Errorf("%v, --cluster %q, a file of %q:\n got %s\nwant %s", c.all.names(), c.asked, c.inFile, text, c.want)
		}
	}
}

func TestContextsOfManyClustersAreOneFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "deep", "context.json")
	write := func(c serverContext) {
		t.Helper()
		if err := c.write(path); err != nil {
			t.Fatal(err)
		}
	}
	read := func() (serverContexts, string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all, err := parseContexts(b)
		if err != nil {
			t.Fatal(err)
		}
		return all, string(b)
	}
	write(serverContext{Cluster: "prod", Server: "https://old"})
	if _, text := read(); strings.Contains(text, "clusters") || !strings.Contains(text, `"cluster": "prod"`) {
		t.Errorf("one alone is not the form of before:\n%s", text)
	}
	write(serverContext{Cluster: "lab", Server: "https://lab"})
	write(serverContext{Cluster: "prod", Server: "https://new"})
	all, _ := read()
	if d := cmp.Diff(serverContexts{{Cluster: "lab", Server: "https://lab"}, {Cluster: "prod", Server: "https://new"}}, all); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}

	var writers sync.WaitGroup
	for _, name := range strings.Split("abcdefghij", "") {
		writers.Go(func() { write(serverContext{Cluster: name}) })
	}
	writers.Wait()
	if all, _ := read(); len(all) != 12 {
		t.Errorf("of ten that were written at a time and two before, the file has %v", all.names())
	}

	if err := os.WriteFile(path, []byte("notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (serverContext{Cluster: "prod"}).write(path); err == nil || !strings.Contains(err.Error(), "what is there is not a context file") {
		t.Errorf("over something else: %v", err)
	}
}

func TestAContextFileThatNamesAClusterTwice(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"clusters":[{"cluster":"a"},{"cluster":"a"}]}`: `it holds cluster "a" more than once, or without a name`,
		`{"clusters":[{"server":"https://x"}]}`:          `it holds cluster "" more than once, or without a name`,
		`{"clusters":[]}`:                                "it holds no cluster",
	} {
		if _, err := parseContexts([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// A verb in the directory of one cluster never calls another one's server.
func TestVerbsCallTheClusterOfTheirFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("IMAGECTL_CONFIG", filepath.Join(dir, "context.json"))
	for _, name := range []string{"prod", "lab"} {
		if err := (serverContext{Cluster: name, CA: "no PEM of " + name}).write("context.json"); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("qa.yaml", []byte("cluster: qa\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"status"}, "the context file has clusters lab, prod: say which with --cluster NAME", exitUsage},
		{[]string{"status", "-f", "qa.yaml"}, "qa.yaml is of cluster qa, and the context file has lab, prod", exitUsage},
		{[]string{"status", "-f", "qa.yaml", "--cluster", "lab"}, "reading context: its ca", exitFailed},
	} {
		if _, errs, code := imagectl(t, c.args...); code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%v: %d, %s; want %d, %s", c.args, code, errs, c.code, c.want)
		}
	}
}
