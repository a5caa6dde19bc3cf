package vsphere_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

// refusing answers one kind of request in vCenter's place, once it is told to: the
// simulator has neither quotas nor a library that is full.
type refusing struct {
	base http.RoundTripper
	with *atomic.Pointer[refusal]
}

// refusal is an answer to all requests that it is for.
type refusal struct {
	to     func(r *http.Request, body []byte) bool
	status int
	kind   string
	body   string
}

// RoundTrip implements http.RoundTripper.
func (t refusing) RoundTrip(r *http.Request) (*http.Response, error) {
	no := t.with.Load()
	if no == nil {
		return t.base.RoundTrip(r)
	}
	var body []byte
	if r.Body != nil && r.Method == http.MethodPost {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	if !no.to(r, body) {
		return t.base.RoundTrip(r)
	}
	return &http.Response{
		Status: http.StatusText(no.status), StatusCode: no.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {no.kind}}, Body: io.NopCloser(strings.NewReader(no.body)), Request: r,
	}, nil
}

// limitExceeded refuses an import, in the form of the API's reference.
func limitExceeded() *refusal {
	return &refusal{
		to:     func(_ *http.Request, body []byte) bool { return bytes.Contains(body, []byte("<ImportVApp ")) },
		status: http.StatusInternalServerError, kind: "text/xml",
		body: `<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>
<faultcode>ServerFaultCode</faultcode><faultstring>The limit of 1 is exceeded.</faultstring>
<detail><LimitExceededFault xmlns="urn:vim25" xsi:type="LimitExceeded"><property>vm</property><limit>1</limit></LimitExceededFault></detail>
</soapenv:Fault></soapenv:Body></soapenv:Envelope>`,
	}
}

// fullLibrary ends an update as a vCenter does whose datastore is full.
func fullLibrary() *refusal {
	return &refusal{
		to: func(r *http.Request, _ []byte) bool {
			return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/library/item/update-session/id:")
		},
		status: http.StatusOK, kind: "application/json",
		body: `{"value":{"state":"ERROR","error_message":{"id":"com.vmware.vdcs.util.unable_to_allocate_resource","args":["Insufficient disk space on datastore 'local'."],"default_message":"The operation failed due to Insufficient disk space on datastore 'local'."}}}`,
	}
}

// noMoreFiles refuses a file before it is sent.
func noMoreFiles() *refusal {
	return &refusal{
		to: func(r *http.Request, _ []byte) bool {
			return r.Method == http.MethodPost && strings.Contains(r.URL.Path, "/library/item/updatesession/file/id:")
		},
		status: http.StatusBadRequest, kind: "application/json",
		body: `{"type":"com.vmware.vapi.std.errors.unable_to_allocate_resource","value":{"messages":[{"default_message":"The storage quota of the library is reached."}]}}`,
	}
}
