// Package syslog hears what machines say of themselves before anything of ours runs on
// them: lines by UDP from iPXE, from a kernel's netconsole, from initial RAM file systems
// and from BMCs (RFC 5424, RFC 3164, or no format at all).
//
// Nobody proves who sends a line, so nothing follows from one: it is kept in memory for
// a person to read, a bounded number for each machine, as text without control
// characters. Who sends more than a console needs is not heard for a while.
package syslog

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
)

// maxText bounds a line, in bytes.
const maxText = 256

// Message is what is in a packet.
type Message struct {
	// Severity is RFC 5424's, 0 (emergency) to 7 (debug); -1 when the packet says none.
	Severity int
	// App is the program that speaks; often empty.
	App string
	// Lines are what it says, without control characters.
	Lines []string
}

var (
	// RFC 5424 section 6: version, time, host, program, process, message id.
	newHeader = regexp.MustCompile(`^1 \S+ \S+ (\S+) \S+ \S+ `)
	// iPXE has no time, and a host name only where DHCP gave it one.
	ipxeHeader = regexp.MustCompile(`^(?:[A-Za-z0-9._-]{1,255} )?ipxe: `)
	// RFC 3164 section 4.1.2: time and host; many leave out either.
	oldTime = regexp.MustCompile(`^(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}T\S+) (?:[A-Za-z0-9._:-]+ )??([A-Za-z0-9._/-]{1,48})(?:\[[^\]]{0,32}\])?: `)
	// tag begins a line of who leaves out time and host.
	tag = regexp.MustCompile(`^([A-Za-z0-9._/-]{1,48})(?:\[[0-9]{1,10}\])?: `)
	// The kernel's extended netconsole (Documentation/networking/netconsole.rst).
	extended = regexp.MustCompile(`^([0-9]{1,4}),[0-9]+,[0-9]+,[^;\n]{0,64};`)
)

// Parse reads a packet. There is none that it refuses: what has no format is a text.
func Parse(packet []byte) Message {
	m := Message{Severity: -1}
	text := strings.ToValidUTF8(string(packet), "?")
	if rest, ok := strings.CutPrefix(text, "<"); ok {
		if digits, body, ok := strings.Cut(rest, ">"); ok && len(digits) <= 3 {
			// 23 facilities of 8 severities each (section 6.2.1).
			if n, err := strconv.ParseUint(digits, 10, 8); err == nil && n <= 191 {
				m.Severity, text = int(n%8), body
			}
		}
	}
	switch {
	case m.Severity < 0:
		if head := extended.FindStringSubmatch(text); head != nil {
			if n, err := strconv.Atoi(head[1]); err == nil {
				m.Severity, m.App, text = n%8, "kernel", text[len(head[0]):]
			}
		}
	case ipxeHeader.MatchString(text):
		m.App, text = "ipxe", text[len(ipxeHeader.FindString(text)):]
	case newHeader.MatchString(text):
		head := newHeader.FindStringSubmatch(text)
		m.App, text = head[1], strings.TrimPrefix(withoutData(text[len(head[0]):]), "\ufeff")
	default:
		for _, form := range []*regexp.Regexp{oldTime, tag} {
			if head := form.FindStringSubmatch(text); head != nil {
				m.App, text = head[1], text[len(head[0]):]
				break
			}
		}
	}
	if m.App == "-" {
		m.App = ""
	}
	m.App = printable(m.App)
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' || r == 0 }) {
		if line = strings.TrimSpace(printable(line)); line != "" && len(m.Lines) < maxLines {
			m.Lines = append(m.Lines, line)
		}
	}
	return m
}

// maxLines is how many lines of one packet are kept.
const maxLines = 16

// withoutData drops RFC 5424's structured data, which is "-" or elements in brackets
// whose values escape their own.
func withoutData(s string) string {
	if rest, ok := strings.CutPrefix(s, "-"); ok {
		return strings.TrimPrefix(rest, " ")
	}
	b, quoted := []byte(s), false
	for i := 0; i < len(b) && b[0] == '['; i++ {
		switch {
		case b[i] == '\\':
			i++
		case b[i] == '"':
			quoted = !quoted
		case b[i] == ']' && !quoted && !bytes.HasPrefix(b[i:], []byte("][")):
			return strings.TrimPrefix(s[i+1:], " ")
		}
	}
	return s
}

// printable makes a stranger's text fit for a terminal and bounds it.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < ' ', r >= 0x7f && r < 0xa0, r == '\u2028', r == '\u2029', r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069':
			return -1
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
