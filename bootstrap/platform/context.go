package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
)

const (
	contextLabel, contextFile = "CONTEXT", "context.sh"
	// maxContext bounds context.sh, in bytes. Besides what is of use here it holds
	// scripts, keys and user data.
	maxContext = 1 << 20
)

// contextName is OpenNebula's VARIABLE (src/parsers/template_parser.l).
var contextName = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// openNebula reads the CONTEXT. Without the medium the error wraps fs.ErrNotExist.
func openNebula(ctx context.Context, m Machine) (Network, error) {
	b, err := m.ReadMedium(ctx, contextLabel, contextFile, maxContext+1)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s %s: %w", contextLabel, contextFile, err)
		}
		return Network{}, err
	}
	vars, err := variables(b)
	if err != nil {
		return Network{}, fmt.Errorf("%s %s: %w", contextLabel, contextFile, err)
	}
	n, err := network(vars)
	n.From = "OpenNebula's CONTEXT"
	return n, err
}

// contextValue returns a variable of OpenNebula's context.sh.
func contextValue(script []byte, name string) ([]byte, error) {
	vars, err := variables(script)
	if err != nil {
		return nil, err
	}
	value, ok := vars[name]
	if !ok {
		return nil, fmt.Errorf("it has no variable %s", name)
	}
	return []byte(value), nil
}

// variables reads OpenNebula's context.sh: comments, and NAME='VALUE' where a value may go
// over several lines and has its quotation marks outside of the quotes, behind a backslash,
// as oned writes it (src/vm/VirtualMachineContext.cc, generate_context). A shell makes the
// same of it. More of the shell's language than that is refused, and nothing is executed.
func variables(script []byte) (map[string]string, error) {
	if len(script) > maxContext {
		return nil, fmt.Errorf("it has more than %d bytes", maxContext)
	}
	vars := map[string]string{}
	rest := string(script)
	if strings.ContainsRune(rest, 0) {
		return nil, errors.New("it holds a NUL, which is in no shell script")
	}
	for rest != "" {
		line, after, _ := strings.Cut(rest, "\n")
		if trimmed := strings.TrimSpace(line); trimmed == "" || trimmed[0] == '#' {
			rest = after
			continue
		}
		name, value, ok := strings.Cut(rest, "=")
		if !ok || !contextName.MatchString(name) {
			return nil, fmt.Errorf("the line %.40q is not NAME='VALUE'", strings.TrimSpace(line))
		}
		text, after, err := quoted(value)
		if err != nil {
			return nil, fmt.Errorf("the value of %.40q: %w", name, err)
		}
		if _, twice := vars[name]; twice {
			return nil, fmt.Errorf("it sets %.40q twice", name)
		}
		vars[name] = text
		rest = after
	}
	return vars, nil
}

// quoted reads a shell word of single-quoted parts and \' up to the line's end.
func quoted(s string) (text, rest string, err error) {
	var b strings.Builder
	for {
		switch {
		case s == "" || s[0] == '\n':
			return b.String(), strings.TrimPrefix(s, "\n"), nil
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
