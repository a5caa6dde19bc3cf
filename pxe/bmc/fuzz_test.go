package bmc

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"
)

// direct takes requests to a handler, without a network.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, in)
	out := w.Result()
	out.Request = r
	return out, nil
}

// broken answers one call with something else.
type broken struct {
	*fake
	call   string
	status int
	body   []byte
	asked  bool
}

func (b *broken) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method+" "+strings.TrimSuffix(r.URL.Path, "/") != b.call {
		b.fake.ServeHTTP(w, r)
		return
	}
	b.asked = true
	w.WriteHeader(b.status)
	_, _ = w.Write(b.body)
}

// Whatever a BMC answers to one of its calls, nothing panics, what is no JSON is an error,
// and every error says who was asked what, in one line that is not long and has no password.
func FuzzRedfish(f *testing.F) {
	const system = "/redfish/v1/Systems/1"
	calls := []string{"GET /redfish/v1", "GET /redfish/v1/Systems", "GET " + system, "GET /redfish/v1/Managers/BMC", "GET " + system + "/VirtualMedia", "GET " + system + "/VirtualMedia/1",
		"POST /redfish/v1/SessionService/Sessions", "PATCH " + system, "POST " + system + "/Actions/ComputerSystem.Reset",
		"POST " + system + "/VirtualMedia/1/Actions/VirtualMedia.InsertMedia", "POST " + system + "/VirtualMedia/1/Actions/VirtualMedia.EjectMedia"}
	for i := range calls {
		for _, body := range []string{"", "null", "[]", "<html>login</html>", `{"Id":{}}`, `{"Members":[{"@odata.id":"//elsewhere/1"},null,7],"Links":[],"Boot":null,"PowerState":"On"}`, strings.Repeat("[", 20000),
			`{"Members":[{"@odata.id":"/redfish/v1/Systems/` + strings.Repeat("1", 2000) + `"}]}`,
			`{"@odata.id":"/redfish/v1/Systems/1","PowerState":"Off","Boot":{"BootSourceOverrideTarget@Redfish.AllowableValues":["` + strings.Repeat(`a\nb`, 2000) + `"]}}`,
			`{"error":{"@Message.ExtendedInfo":[{"Message":"` + strings.Repeat(`é\u0000\n`, 300) + `"}]}}`, `{"Actions":{"#ComputerSystem.Reset":{"target":"@elsewhere","ResetType@Redfish.AllowableValues":7}}}`} {
			f.Add(byte(i), uint16(0), []byte(body)) // 200
			f.Add(byte(i), uint16(200+i), []byte(body))
		}
	}
	quirks, err := Quirks()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, call byte, status uint16, body []byte) {
		b := &broken{fake: newFake(), call: calls[int(call)%len(calls)], status: 200 + int(status)%400, body: body}
		b.fake.power = "Off"
		target := Target{Kind: Redfish, Address: "bmc", Username: b.user, Password: Password(b.password), TLS: &tls.Config{}}
		way := newTransport(target, noPause)
		way.next = direct{b}
		ctx := t.Context()
		var all []error
		c, err := loginRedfish(ctx, target, way, quirks, noPause)
		all = append(all, err)
		if err == nil {
			_, err := c.Power(ctx)
			all = append(all, err, c.BootOnce(ctx, PXE), c.InsertMedia(ctx, "http://10.0.0.1/a.iso"), c.Act(ctx, PowerOn), c.EjectMedia(ctx))
			c.Close()
		}
		for _, err := range all {
			var e *Error
			if err == nil {
				continue
			}
			if text := err.Error(); !errors.As(err, &e) || e.BMC != "redfish bmc" || e.Call == "" || len(text) > 3*maxAnswer || !utf8.ValidString(text) || strings.ContainsAny(text, "\n\r\x00") || strings.Contains(text, b.password) && !bytes.Contains(body, []byte(b.password)) {
				t.Errorf("%s answers %d %q: got the error %q", b.call, b.status, body, text)
			}
		}
		var first json.RawMessage
		unread := json.NewDecoder(bytes.NewReader(body)).Decode(&first)
		if strings.HasPrefix(b.call, "GET") && b.asked && b.status == 200 && unread != nil && errors.Join(all...) == nil {
			t.Errorf("%s answers %q, which is no JSON (%v), and nothing is wrong", b.call, body, unread)
		}
	})
}

// Data is refused, or has an id and evidence for each quirk, which match what they say.
func FuzzQuirks(f *testing.F) {
	f.Add(quirksYAML, "Dell Inc.", "PowerEdge R640")
	f.Add([]byte("- {id: a, evidence: e, match: {vendor: '(('}}"), "", "")
	f.Add([]byte("- {id: a, evidence: e, match: {kind: redfish, model: '^x$'}, effect: {busy: [{status: 503, text: a}, {}]}}\n- &b {id: b, evidence: e, match: *b}"), "x", "x")
	f.Add([]byte("- null\n- {id: a}"), "x", "y")
	f.Fuzz(func(t *testing.T, data []byte, vendor, model string) {
		all, err := parseQuirks(data)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, q := range all {
			if q.ID == "" || q.Evidence == "" || seen[q.ID] {
				t.Errorf("%q has the quirk %+v", data, q)
			}
			seen[q.ID] = true
		}
		e := effectOf(all, Info{Kind: Redfish, Manufacturer: vendor, Model: model})
		e.busy(&Error{BMC: "redfish x", Status: 503, Answer: vendor})
		if e.busy(io.EOF) || e.busy(&Error{BMC: "redfish x", Err: io.EOF}) || e.busy(fmt.Errorf("x: %w", io.EOF)) {
			t.Errorf("%q: what was not answered counts as busy", data)
		}
	})
}
