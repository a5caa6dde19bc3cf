package httpboot

import (
	"io"
	"net/http"

	"github.com/imagectl/imagectl/pxe/routes"
)

// Meter counts. Its methods do not block and are safe for concurrent use.
type Meter interface {
	// Begun counts a request that came in for a route: script, ignition, file,
	// http-boot, healthz or other.
	Begun(route string)
	// Ended counts its end, with the status and the bytes of the body that were sent.
	Ended(route string, status int, sent int64)
}

// metered counts what its mux serves.
type metered struct {
	*routes.Mux
	meter Meter
}

func (m metered) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route := routeOf(m.Pattern(r))
	c := &counting{ResponseWriter: w, status: http.StatusOK}
	m.meter.Begun(route)
	defer func() { m.meter.Ended(route, c.status, c.sent) }()
	m.Mux.ServeHTTP(c, r)
}

// routeOf names a pattern: what a stranger asks for never becomes a word of ours.
func routeOf(pattern string) string {
	switch pattern {
	case "GET /boot.ipxe":
		return "script"
	case "GET /ignition":
		return "ignition"
	case "GET /files/{sha256}/{name}":
		return "file"
	case "GET /boot/{mac}/{name}":
		return "http-boot"
	case "GET /healthz":
		return "healthz"
	}
	return "other"
}

// counting counts what is written. It passes ReadFrom on, or files would no
// longer be sent by sendfile.
type counting struct {
	http.ResponseWriter
	status int
	sent   int64
}

func (c *counting) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom.
func (c *counting) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.sent += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *counting) Unwrap() http.ResponseWriter { return c.ResponseWriter }
