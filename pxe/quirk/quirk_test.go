package quirk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/quirk"
)

func TestEveryNumberIsThere(t *testing.T) {
	var have []int
	for _, q := range load(t).All() {
		have = append(have, q.Number)
	}
	if !slices.IsSorted(have) {
		t.Error("the data is not in the order of the numbers")
	}
	for n := 1; n <= 50; n++ {
		if !slices.Contains(have, n) {
			t.Errorf("quirk %d is missing", n)
		}
	}
}

// What is handled is played back by a transcript or shown by a named test.
func TestEveryHandledQuirkIsShown(t *testing.T) {
	paths := transcripts(t)
	for _, q := range load(t).All() {
		has := slices.Contains(paths, file(q))
		paths = slices.DeleteFunc(paths, func(p string) bool { return p == file(q) })
		if has == (q.Handled == quirk.Not) && len(q.Tests) == 0 {
			t.Errorf("%s is handled: %s, and its transcript %s is there: %v", q.Name, q.Handled, file(q), has)
		}
		for _, at := range q.Tests {
			dir, name, _ := strings.Cut(at, " ")
			if !testExists(t, filepath.Join("../..", dir), name) {
				t.Errorf("%s: there is no test %s", q.Name, at)
			}
		}
	}
	if len(paths) > 0 {
		t.Errorf("no quirk has the transcripts %v", paths)
	}
}

// The figures in README.md are those of the data.
func TestReadmeCountsTheHabits(t *testing.T) {
	shown, named, not := len(transcripts(t)), 0, 0
	all := load(t).All()
	for _, q := range all {
		switch {
		case q.Handled == quirk.Not:
			not++
		case !slices.Contains(transcripts(t), file(q)):
			named++
		}
	}
	want := fmt.Sprintf("of %d that are listed, %d by a transcript, byte for byte, %d by a named test; %d are not handled", len(all), shown, named, not)
	if b, err := os.ReadFile("../../README.md"); err != nil || !strings.Contains(string(b), want) {
		t.Errorf("README.md does not say %q: %v", want, err)
	}
}

func testExists(t *testing.T, dir, name string) bool {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "func "+name+"(") {
			return true
		}
	}
	return false
}

// The table in the documentation is the data.
func TestDocumentationIsTheData(t *testing.T) {
	const path = "../../docs/netboot.md"
	const begin, end = "<!-- quirks: go test ./pxe/quirk -update rewrites the table -->\n", "<!-- end of quirks -->"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := before + begin + table(load(t)) + end + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(b) != want {
		t.Errorf("%s is not what quirks.yaml says; go test ./pxe/quirk -update rewrites it", path)
	}
}

func table(s quirk.Set) string {
	var w strings.Builder
	w.WriteString("| no. | firmware | imagectl | for |\n|---|---|---|---|\n")
	for _, q := range s.All() {
		who := "always"
		switch {
		case q.Handled == quirk.Not:
			who = "no"
		case q.Match.Named:
			who = "by name: `" + q.Name + "`"
		case q.Handled == quirk.Matched:
			who = "by packet"
		}
		fmt.Fprintf(&w, "| %d | %s | %s | %s |\n", q.Number, q.Habit, q.Answer, who)
	}
	return w.String()
}

func TestDataIsReadStrictly(t *testing.T) {
	const rest = "number: 1, habit: h, answer: a, evidence: e"
	for text, want := range map[string]string{
		"- {name: a, handled: always}":                                                                          `"a": number, habit, answer and evidence must all be there`,
		"- {name: A b, handled: always, " + rest + "}":                                                          "this is not a name",
		"- {name: a, handled: maybe, " + rest + "}":                                                             "handled is none of",
		"- {name: a, handled: always, " + rest + "}\n- {name: a, handled: not, " + rest + "}":                   `"a" is there twice`,
		"- {name: a, handled: matched, " + rest + "}":                                                           "match is either",
		"- {name: a, handled: matched, match: {named: true}, " + rest + "}":                                     "it has no effect",
		"- {name: a, handled: always, effect: {program: true}, " + rest + "}":                                   "only what is matched",
		"- {name: a, handled: matched, match: {named: true, arch: [0]}, effect: {program: true}, " + rest + "}": "match is either",
		"- {name: a, handled: matched, match: {mac: [B8]}, effect: {program: true}, " + rest + "}":              "mac: want the beginning",
		"- {name: a, handled: matched, match: {named: true}, effect: {delay: -1s}, " + rest + "}":               "delay: -1s is not between 0 and 1m0s, after which firmware has given up",
		"- {name: a, handled: matched, match: {named: true}, effect: {blockSize: 7}, " + rest + "}":             "blockSize: 7 is not between 8 and 65464",
		"- {name: a, effects: {}}":                                                                              "field effects not found",
		"- {name: a, effect: {vendorOptions: xyz}}":                                                             "invalid byte",
		"- {name: a, effect: {delay: 2}, match: {arch: [-1]}}":                                                  "cannot unmarshal",
	} {
		if _, err := quirk.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func TestEffectsAreJoined(t *testing.T) {
	s := load(t)
	named := []string{"small-blocks", "late-answer", "exit-hangs", "discovery-control", "unheard-of", "binl-redirect"}
	for part, want := range map[quirk.Part]string{
		quirk.DHCP: "[discovery-control late-answer]", quirk.TFTP: "[small-blocks]", quirk.Disk: "[exit-hangs]",
	} {
		if _, names := s.Apply(part, quirk.Client{MAC: cardOf("52:54:00:00:00:01")}, named); fmt.Sprint(names) != want {
			t.Errorf("part %d: got %v, want %s", part, names, want)
		}
	}
	if e, names := s.Apply(quirk.DHCP, quirk.Client{}, nil); names != nil || e.Silent != "" {
		t.Errorf("a client that shows nothing has %v of %v", e, names)
	}
}
