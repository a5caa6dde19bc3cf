package platform

import (
	"errors"
	"fmt"
	"strings"
)

// contextValue returns a variable of OpenNebula's context.sh: lines NAME='VALUE',
// where a value may go over several lines and has '\” for a quote
// (OpenNebula's src/tm_mad/common/context). Nothing of it is executed.
func contextValue(script []byte, name string) ([]byte, error) {
	rest := string(script)
	for rest != "" {
		line, after, _ := strings.Cut(rest, "\n")
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			rest = after
			continue
		}
		key, value, ok := strings.Cut(rest, "=")
		if !ok || strings.ContainsAny(key, "\n'\" ") {
			return nil, fmt.Errorf("the line %.40q is not NAME='VALUE'", line)
		}
		text, after, err := quoted(value)
		if err != nil {
			return nil, fmt.Errorf("the value of %.40q: %w", key, err)
		}
		if key == name {
			return []byte(text), nil
		}
		rest = after
	}
	return nil, fmt.Errorf("it has no variable %s", name)
}

// quoted reads a shell word of single-quoted parts and \' up to the line's end.
func quoted(s string) (text, rest string, err error) {
	var b strings.Builder
	for {
		switch {
		case s == "" || s[0] == '\n':
			return b.String(), strings.TrimPrefix(s, "\n"), nil
		case s[0] == '\r':
			s = s[1:]
		case strings.HasPrefix(s, `\'`):
			b.WriteByte('\'')
			s = s[2:]
		case s[0] == '\'':
			part, after, ok := strings.Cut(s[1:], "'")
			if !ok {
				return "", "", errors.New("its quotation does not end")
			}
			b.WriteString(part)
			s = after
		default:
			return "", "", errors.New("it is not in single quotes")
		}
	}
}
