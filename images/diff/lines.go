package diff

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	unified "github.com/rogpeppe/go-internal/diff"
)

// MaxLines bounds the lines of one change: more are read elsewhere.
const MaxLines = 40

// maxText bounds a text of which lines are told, and maxLine one line, in bytes.
const (
	maxText = 1 << 20
	maxLine = 200
)

// lines are the lines in which two texts differ, with three around them; none
// when either is no text.
func lines(a, b []byte) []string {
	if !isText(a) || !isText(b) {
		return nil
	}
	// Three lines head it, which name the files.
	all := strings.Split(strings.TrimSuffix(string(unified.Diff("a", a, "b", b)), "\n"), "\n")
	if len(all) <= 3 {
		return nil
	}
	var out []string
	for i, line := range all[3:] {
		if left := len(all) - 3 - i; i == MaxLines-1 && left > 1 {
			return append(out, fmt.Sprintf("@@ %d more lines @@", left))
		}
		out = append(out, clip(line))
	}
	return out
}

// clip shortens a line at the start of a character.
func clip(line string) string {
	if len(line) <= maxLine {
		return line
	}
	n := maxLine
	for !utf8.RuneStart(line[n]) {
		n--
	}
	return line[:n] + fmt.Sprintf(" (%d more bytes)", len(line)-n)
}

// isText tells what a terminal can show: escape sequences are none of it.
func isText(b []byte) bool {
	if len(b) > maxText || !utf8.Valid(b) {
		return false
	}
	return bytes.IndexFunc(b, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) < 0
}
