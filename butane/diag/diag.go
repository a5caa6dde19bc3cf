// Package diag is what we say about an input file: findings with a position, a
// path and a hint, collected until all are known and printed with the line they
// are about. It reads no file by itself.
package diag

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Severity says whether a finding stops the work. The zero value is Error.
type Severity int

// The severities.
const (
	// Error: the input cannot be used.
	Error Severity = iota
	// Warning: it can be used, and somebody should know.
	Warning
)

// String is the word that is printed.
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// MarshalText makes JSON carry the word.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Severity) UnmarshalText(b []byte) error {
	switch string(b) {
	case "error":
		*s = Error
	case "warning":
		*s = Warning
	default:
		return fmt.Errorf("parsing severity %q: want error or warning", b)
	}
	return nil
}

// Pos is a place in a file. Line and Column count from 1, Column in characters;
// 0 means that it is not known.
type Pos struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String is file:line:col as editors and terminals understand it.
func (p Pos) String() string {
	s := p.File
	if p.Line > 0 {
		s += ":" + strconv.Itoa(p.Line)
		if p.Column > 0 {
			s += ":" + strconv.Itoa(p.Column)
		}
	}
	return s
}

// Finding is one thing to say.
type Finding struct {
	Severity Severity `json:"severity"`
	Pos
	// Path is where it is in the document (machines[0].match.mac); it may be empty.
	Path string `json:"path,omitempty"`
	// Message is one sentence without a final stop.
	Message string `json:"message"`
	// Hint is what to write or run instead; it may be empty or have several lines.
	Hint string `json:"hint,omitempty"`
}

// List is a set of findings.
type List []Finding

// Sort orders by file, line and column and drops exact repetitions.
func (l *List) Sort() {
	slices.SortStableFunc(*l, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Severity, b.Severity),
		)
	})
	*l = slices.Compact(*l)
}

// Count returns how many findings are errors and how many are warnings.
func (l List) Count() (errs, warnings int) {
	for _, f := range l {
		if f.Severity == Error {
			errs++
		} else {
			warnings++
		}
	}
	return errs, warnings
}

// Err is nil unless there is an error among the findings; otherwise it is one
// error with all of them, a line each. Verbs print with Fprint instead.
func (l List) Err() error {
	var lines []string
	for _, f := range l {
		if f.Severity == Error {
			lines = append(lines, f.String())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines, "\n"))
}

// String is the finding on one line, without its hint.
func (f Finding) String() string {
	var b strings.Builder
	if s := f.Pos.String(); s != "" {
		b.WriteString(s + ": ")
	}
	b.WriteString(f.Severity.String() + ": ")
	if f.Path != "" {
		b.WriteString(f.Path + ": ")
	}
	b.WriteString(f.Message)
	return b.String()
}

// Fprint writes every finding with the line it is about, a caret below the
// column, and the hint. read returns the text of a file of a Pos, such as
// os.ReadFile; nil, or a file that cannot be read, only costs the line.
func Fprint(w io.Writer, l List, read func(name string) ([]byte, error)) error {
	cache := map[string][]string{}
	for _, f := range l {
		var b strings.Builder
		b.WriteString(f.String() + "\n")
		if text, ok := sourceLine(cache, read, f.Pos); ok {
			gutter := fmt.Sprintf("%5d | ", f.Line)
			b.WriteString(gutter + text + "\n")
			if f.Column > 0 {
				b.WriteString(strings.Repeat(" ", len(gutter)-2) + "| " + caretIndent(text, f.Column) + "^\n")
			}
		}
		for i, hint := range strings.Split(f.Hint, "\n") {
			switch {
			case f.Hint == "":
			case i == 0:
				b.WriteString("      = hint: " + hint + "\n")
			default:
				b.WriteString("              " + hint + "\n")
			}
		}
		if _, err := io.WriteString(w, b.String()); err != nil {
			return fmt.Errorf("printing findings: %w", err)
		}
	}
	return nil
}

func sourceLine(cache map[string][]string, read func(string) ([]byte, error), p Pos) (string, bool) {
	if read == nil || p.File == "" || p.Line <= 0 {
		return "", false
	}
	lines, ok := cache[p.File]
	if !ok {
		if b, err := read(p.File); err == nil {
			lines = strings.Split(string(b), "\n")
		}
		cache[p.File] = lines
	}
	if p.Line > len(lines) {
		return "", false
	}
	return printable(strings.TrimRight(lines[p.Line-1], "\r")), true
}

// printable keeps a hostile file from driving the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && !strconv.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// caretIndent repeats the tabs of the line, so that the caret stands below its
// character whatever the width of a tab.
func caretIndent(text string, column int) string {
	var b strings.Builder
	n := 1
	for _, r := range text {
		if n >= column {
			break
		}
		if r == '\t' {
			b.WriteByte('\t')
		} else {
			b.WriteByte(' ')
		}
		n++
	}
	return b.String()
}
