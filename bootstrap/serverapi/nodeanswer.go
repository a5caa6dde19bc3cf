package serverapi

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/audit"
)

// endMax bounds what is kept of an answer to read how it ended, in bytes.
const endMax = 64 << 10

// answer is a node's, on its way to who asked. It finds out how the call ended, for the log,
// and changes nothing. It is for one reader.
type answer struct {
	io.ReadCloser
	wire   wire
	resp   *http.Response
	ended  bool
	failed error
	bytes  int64

	// head is of the envelope that is read, rest what is left of it, end what is kept.
	head []byte
	rest uint32
	end  []byte
	// keeps: what is read now is kept.
	keeps bool
}

// newAnswer takes the place of an answer's body.
func newAnswer(resp *http.Response) *answer {
	a := &answer{ReadCloser: resp.Body, resp: resp}
	a.wire, _ = wireOf(resp.Header.Get("Content-Type")) // an error of another kind is one message
	a.keeps = !a.wire.enveloped && resp.StatusCode != http.StatusOK
	return a
}

// Read implements io.Reader.
func (a *answer) Read(b []byte) (int, error) {
	n, err := a.ReadCloser.Read(b)
	a.bytes += int64(n)
	a.look(b[:n])
	switch {
	case err == io.EOF:
		a.ended = true
	case err != nil:
		a.failed = err
	}
	return n, err
}

// look goes through what has come.
func (a *answer) look(b []byte) {
	for len(b) > 0 {
		if !a.wire.enveloped {
			a.keep(b)
			return
		}
		if a.rest == 0 {
			n := min(5-len(a.head), len(b))
			a.head, b = append(a.head, b[:n]...), b[n:]
			if len(a.head) == 5 {
				a.rest = binary.BigEndian.Uint32(a.head[1:])
				a.keeps = a.head[0]&a.wire.endFlag != 0
				if a.rest == 0 {
					a.head = a.head[:0]
				}
			}
			continue
		}
		n := min(int64(a.rest), int64(len(b)))
		a.keep(b[:n])
		b, a.rest = b[n:], a.rest-uint32(n)
		if a.rest == 0 && !a.keeps {
			a.head = a.head[:0]
		}
	}
}

func (a *answer) keep(b []byte) {
	if room := endMax - len(a.end); a.keeps && room > 0 {
		a.end = append(a.end, b[:min(room, len(b))]...)
	}
}

// result is a word for how the call ended: audit.Done, or Connect's code.
func (a *answer) result() string {
	unavailable := connect.CodeUnavailable.String()
	switch {
	case errors.Is(a.failed, context.Canceled), a.failed == nil && !a.ended:
		return connect.CodeCanceled.String() // who asked has gone
	case a.failed != nil:
		return unavailable
	case !a.wire.enveloped && a.resp.StatusCode == http.StatusOK:
		return audit.Done
	case a.resp.StatusCode != http.StatusOK:
		return cmp.Or(codeIn(a.end), unavailable)
	case a.wire.endFlag == 0x02:
		return a.connectEnd()
	case a.wire.endFlag == 0:
		return grpcResult(cmp.Or(a.resp.Trailer.Get("Grpc-Status"), a.resp.Header.Get("Grpc-Status")))
	}
	return grpcResult(cmp.Or(statusIn(a.endMessage()), a.resp.Header.Get("Grpc-Status")))
}

// endMessage is the last envelope's, nil where the answer broke off before it.
func (a *answer) endMessage() []byte {
	if !a.keeps || a.rest != 0 || len(a.head) != 5 {
		return nil
	}
	if a.head[0]&1 == 0 {
		return a.end
	}
	b, err := unpacked(a.end, a.resp.Header.Get(a.wire.compression))
	if err != nil {
		return nil
	}
	return b
}

// connectEnd reads the end of a stream of Connect's: {} or {"error": {"code": ...}}.
func (a *answer) connectEnd() string {
	var end struct {
		Error json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(a.endMessage(), &end); err != nil {
		return connect.CodeUnavailable.String()
	}
	if end.Error == nil {
		return audit.Done
	}
	return cmp.Or(codeIn(end.Error), connect.CodeUnknown.String())
}

// codeIn is the code of an error of Connect's; empty for what is none. Nothing but Connect's
// own words gets into the log.
func codeIn(b []byte) string {
	var e struct {
		Code connect.Code `json:"code"`
	}
	if err := json.Unmarshal(b, &e); err != nil || e.Code == 0 {
		return ""
	}
	return e.Code.String()
}

// statusIn finds gRPC's status in the trailers of gRPC-Web, which are lines as of HTTP/1.
func statusIn(b []byte) string {
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)) == "Grpc-Status" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func grpcResult(status string) string {
	switch n, err := strconv.ParseUint(status, 10, 8); {
	case err != nil:
		return connect.CodeUnavailable.String() // it broke off
	case n == 0:
		return audit.Done
	case connect.Code(n) > connect.CodeUnauthenticated:
		return connect.CodeUnknown.String()
	default:
		return connect.Code(n).String()
	}
}
