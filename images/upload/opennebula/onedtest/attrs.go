package onedtest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
)

// attr is NAME="text", or NAME=[ KEY="text", ... ].
type attr struct {
	name, text string
	pairs      attrs
}

type attrs []attr

func (a attrs) get(name string) string {
	for _, x := range a {
		if x.name == name {
			return x.text
		}
	}
	return ""
}

// has tells whether there is NAME or NAME/KEY.
func (a attrs) has(path string) bool {
	name, key, vector := strings.Cut(path, "/")
	for _, x := range a {
		if x.name == name && (!vector || x.pairs.has(key)) {
			return true
		}
	}
	return false
}

func (a attrs) xml() string {
	var b bytes.Buffer
	for _, x := range a {
		b.WriteString("<" + x.name + ">")
		if x.pairs != nil {
			b.WriteString(x.pairs.xml())
		} else {
			b.WriteString(escape(x.text))
		}
		b.WriteString("</" + x.name + ">")
	}
	return b.String()
}

func escape(s string) string {
	var b bytes.Buffer
	// A bytes.Buffer takes everything.
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}

// parse reads OpenNebula's text form.
func parse(text string) (attrs, error) {
	p := &parser{rest: text}
	var out attrs
	for p.space(); p.rest != ""; p.space() {
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(p.rest, "[") {
			pairs, err := p.vector()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			out = append(out, attr{name: name, pairs: pairs})
			continue
		}
		text, err := p.quoted()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, attr{name: name, text: text})
	}
	return out, nil
}

type parser struct{ rest string }

func (p *parser) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

func (p *parser) name() (string, error) {
	name, rest, ok := strings.Cut(p.rest, "=")
	name = strings.TrimSpace(name)
	if !ok || name == "" || strings.ContainsAny(name, " \n\"[],") {
		return "", fmt.Errorf("syntax error at %.30q", p.rest)
	}
	p.rest = rest
	p.space()
	return strings.ToUpper(name), nil
}

func (p *parser) quoted() (string, error) {
	if !strings.HasPrefix(p.rest, `"`) {
		return "", fmt.Errorf("want a quotation mark at %.30q", p.rest)
	}
	text, rest, ok := strings.Cut(p.rest[1:], `"`)
	if !ok {
		return "", errors.New("a quotation does not end")
	}
	p.rest = rest
	return text, nil
}

func (p *parser) vector() (attrs, error) {
	p.rest = p.rest[1:]
	pairs := attrs{}
	for {
		p.space()
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		text, err := p.quoted()
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, attr{name: name, text: text})
		p.space()
		switch {
		case strings.HasPrefix(p.rest, ","):
			p.rest = p.rest[1:]
		case strings.HasPrefix(p.rest, "]"):
			p.rest = p.rest[1:]
			return pairs, nil
		default:
			return nil, fmt.Errorf("want , or ] at %.30q", p.rest)
		}
	}
}
