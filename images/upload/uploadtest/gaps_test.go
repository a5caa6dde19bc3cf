package uploadtest

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upload"
)

// A platform without hooks has the whole suite fail, and not pass.
func TestACaseIsTriedOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	all := []Case{Credentials, Full, Quota, InUse, CalledOff, Others, Storm, Options, Forgotten}
	why := map[Case]string{}
	for _, c := range all {
		why[c] = "a reason"
	}
	hooks := Platform{
		Stranger: func() upload.Target { return nil }, Fill: func() {}, Quota: func() {}, Use: func(upload.Object) error { return nil },
		Hold: func() {}, Release: func() {}, Plant: func() func() error { return nil },
		Patient: func(*Faults) upload.Target { return nil }, Repeats: func(*http.Request) bool { return true },
		Later:   func(*Faults) upload.Target { return nil },
		Changed: func(*Faults) upload.Target { return nil }, Template: func() (string, error) { return "", nil }, Options: []string{"an option"},
	}
	both := hooks
	both.Absent = map[Case]string{Full: "a reason"}
	half := hooks
	half.Release = nil
	for _, tt := range []struct {
		name string
		p    Platform
		want []Case
		text string
	}{
		{"nothing", Platform{}, all, "there is neither a hook nor a reason in Absent"},
		{"all hooks", hooks, nil, ""},
		{"all reasons", Platform{Absent: why}, nil, ""},
		{"both", both, []Case{Full}, "there is a hook, and a reason for there being none"},
		{"imports that are held for ever", half, []Case{CalledOff}, "there is neither"},
		{"a reason that says nothing", Platform{Absent: map[Case]string{Full: " ", Credentials: "a", Quota: "a", InUse: "a", CalledOff: "a", Others: "a", Storm: "a", Options: "a", Forgotten: "a"}}, []Case{Full}, "there is neither"},
		{"a case that is none", Platform{Absent: func() map[Case]string {
			more := map[Case]string{"full": "a reason"}
			for c, w := range why {
				more[c] = w
			}
			return more
		}()}, []Case{"full"}, "there is no such case"},
	} {
		got := tt.p.gaps()
		ok := len(got) == len(tt.want)
		for _, c := range tt.want {
			ok = ok && slices.ContainsFunc(got, func(text string) bool { return strings.HasPrefix(text, string(c)+": "+tt.text) })
		}
		if !ok {
			t.Errorf("%s: got %q, want gaps %q, each %q", tt.name, got, tt.want, tt.text)
		}
	}
}

// The pages say in which ways an upload was broken by naming the table in docs/upload.md,
// which has to have all of them; none counts them.
func TestThePagesNameEveryFault(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("faults.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`Kind = "([a-z]+)"`).FindAllSubmatch(b, -1)
	page, err := os.ReadFile("../../../docs/upload.md")
	if err != nil || len(kinds) < 5 {
		t.Fatalf("%v, and faults.go has %d kinds", err, len(kinds))
	}
	_, section, _ := strings.Cut(string(page), "\n## How uploads are broken\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| `([a-z]+)` \\|").FindAllStringSubmatch(section, -1)
	for _, k := range kinds {
		if !slices.ContainsFunc(rows, func(r []string) bool { return r[1] == string(k[1]) }) {
			t.Errorf("docs/upload.md does not say what %q is", k[1])
		}
	}
	if len(rows) != len(kinds) {
		t.Errorf("docs/upload.md has %d faults, and the suite has %d", len(rows), len(kinds))
	}
	counted := regexp.MustCompile(`broken\s+in\s+(turn,\s+in\s+)?(all\s+)?[a-z0-9]+\s+ways\b`)
	pages, err := filepath.Glob("../../../docs/upload*.md")
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, name := range pages {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if hit := counted.FindString(string(b)); hit != "" {
			t.Errorf("%s counts the faults: %q; name the table in docs/upload.md", name, hit)
		}
	}
}
