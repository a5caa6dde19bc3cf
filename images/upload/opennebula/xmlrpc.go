package opennebula

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/pin"
)

// maxReply bounds an answer; the pool of 10,000 images has about 20 MB.
const maxReply = 64 << 20

// value is one XML-RPC value (xmlrpc.com/spec), as far as oned uses them. Text
// directly in value is a string.
type value struct {
	Text    string   `xml:",chardata"`
	String  *string  `xml:"string"`
	Int     *int64   `xml:"int"`
	I4      *int64   `xml:"i4"`
	I8      *int64   `xml:"i8"`
	Boolean *string  `xml:"boolean"`
	Array   *[]value `xml:"array>data>value"`
}

func (v value) text() string {
	switch {
	case v.String != nil:
		return *v.String
	case v.Int != nil:
		return strconv.FormatInt(*v.Int, 10)
	case v.I4 != nil:
		return strconv.FormatInt(*v.I4, 10)
	case v.I8 != nil:
		return strconv.FormatInt(*v.I8, 10)
	}
	return v.Text
}

func (v value) true() bool {
	return v.Boolean != nil && (strings.TrimSpace(*v.Boolean) == "1" || strings.EqualFold(strings.TrimSpace(*v.Boolean), "true"))
}

type methodResponse struct {
	XMLName xml.Name `xml:"methodResponse"`
	Values  []value  `xml:"params>param>value"`
	Fault   *struct {
		Members []struct {
			Name  string `xml:"name"`
			Value value  `xml:"value"`
		} `xml:"value>struct>member"`
	} `xml:"fault"`
}

// encodeCall writes a methodCall; arguments are string, int or bool.
func encodeCall(method string, args []any) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(xml.Header + "<methodCall><methodName>" + method + "</methodName><params>")
	for _, a := range args {
		b.WriteString("<param><value>")
		switch v := a.(type) {
		case string:
			b.WriteString("<string>")
			if err := xml.EscapeText(&b, []byte(v)); err != nil {
				return nil, fmt.Errorf("encoding %s: %w", method, err)
			}
			b.WriteString("</string>")
		case int:
			fmt.Fprintf(&b, "<int>%d</int>", v)
		case bool:
			n := 0
			if v {
				n = 1
			}
			fmt.Fprintf(&b, "<boolean>%d</boolean>", n)
		default:
			return nil, fmt.Errorf("encoding %s: argument %v is no string, int or bool", method, a)
		}
		b.WriteString("</value></param>")
	}
	b.WriteString("</params></methodCall>")
	return b.Bytes(), nil
}

// decodeReply takes oned's [ok, value or text, code] out of a methodResponse.
func decodeReply(b []byte) (string, *refusal, error) {
	var r methodResponse
	if err := xml.Unmarshal(b, &r); err != nil {
		return "", nil, fmt.Errorf("it is no XML-RPC answer: %w", err)
	}
	if r.Fault != nil {
		var words []string
		for _, m := range r.Fault.Members {
			words = append(words, m.Name+" "+m.Value.text())
		}
		return "", nil, fmt.Errorf("fault: %s", strings.Join(words, ", "))
	}
	if len(r.Values) != 1 || r.Values[0].Array == nil || len(*r.Values[0].Array) < 2 {
		return "", nil, errors.New("it is no array of success and value")
	}
	all := *r.Values[0].Array
	if all[0].true() {
		return all[1].text(), nil, nil
	}
	ref := &refusal{text: strings.TrimSpace(all[1].text())}
	if len(all) > 2 {
		ref.code, _ = strconv.Atoi(strings.TrimSpace(all[2].text()))
	}
	return "", ref, nil
}

// Codes of refusals (OpenNebula's documentation of its XML-RPC API).
const (
	codeAuthentication = 0x0100
	codeAuthorization  = 0x0200
	codeNoExists       = 0x0400
	codeAction         = 0x0800
)

// refusal is an answer of oned that is no success.
type refusal struct {
	code int
	text string
}

func (r *refusal) Error() string { return fmt.Sprintf("OpenNebula says (%d): %s", r.code, r.text) }

// Unwrap says which of upload's errors it is. oned's codes are coarse, so its words
// decide first: a quota and a datastore that is full have codes of their own only
// in the words, and so has a name that is taken.
func (r *refusal) Unwrap() error {
	words := strings.ToLower(r.text)
	has := func(all ...string) bool {
		for _, w := range all {
			if strings.Contains(words, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("quota", "not enough space", "no space left", "limit of"):
		return upload.ErrSpace
	case has("already taken"):
		return upload.ErrTaken
	case r.code == codeAction, has("locked", "vms using it", "in use"):
		return upload.ErrInUse
	case r.code == codeAuthentication, r.code == codeAuthorization:
		return upload.ErrAuth
	case r.code == codeNoExists:
		return upload.ErrNotFound
	}
	return upload.ErrServer
}

// call sends one request. Arguments come after the session.
func (t *Target) call(ctx context.Context, method string, args ...any) (string, error) {
	fail := func(err error) error { return fmt.Errorf("calling %s: %w", method, upload.CallError(ctx, err)) }
	body, err := encodeCall(method, append([]any{t.conf.Session}, args...))
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.conf.Endpoint, bytes.NewReader(body))
	if err != nil {
		return "", fail(err)
	}
	req.Header.Set("Content-Type", "text/xml")
	resp, err := t.conf.Client.Do(req)
	if err != nil {
		return "", fail(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return "", fail(err)
	}
	if len(b) > maxReply {
		return "", fail(fmt.Errorf("the answer has more than %d bytes", maxReply))
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return "", fail(upload.StatusError(resp.StatusCode, short(b)))
	default:
		// oned answers refusals with 200: this is a proxy, or not oned. A 404 does
		// not say that an object is gone.
		return "", fail(fmt.Errorf("%w: HTTP %s: %s", upload.ErrServer, resp.Status, short(b)))
	}
	result, ref, err := decodeReply(b)
	if err != nil {
		return "", fail(fmt.Errorf("%w: %s", err, short(b)))
	}
	if ref != nil {
		return "", fmt.Errorf("calling %s: %w", method, ref)
	}
	return result, nil
}

// ask is a call that changes nothing, so that it is made again when the server
// fails: a proxy that restarts is no reason to break an upload off.
func (t *Target) ask(ctx context.Context, method string, args ...any) (string, error) {
	var err error
	for try := range asks {
		if try > 0 {
			if err := t.conf.Wait(ctx); err != nil {
				return "", fmt.Errorf("calling %s: %w", method, upload.CallError(ctx, err))
			}
		}
		var result string
		result, err = t.call(ctx, method, args...)
		if err == nil || !errors.Is(err, upload.ErrServer) || pin.Untrusted(err) {
			return result, err
		}
	}
	return "", err
}

// asks is how often a question is put.
const asks = 3

// short is the beginning of what a server said, without markup, for an error.
func short(b []byte) string {
	const most = 300
	s := strings.Join(strings.Fields(string(b)), " ")
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
