package cli

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pin/tftp/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/pxe/server"
)

// routeList is a log that hears what servers say that they serve.
type routeList struct {
	slog.Handler
	mu       sync.Mutex
	patterns map[string][]string
}

// Handle implements slog.Handler.
func (l *routeList) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Message == "routes" {
		var name string
		var patterns []string
		rec.Attrs(func(a slog.Attr) bool {
			switch v := a.Value.Any().(type) {
			case string:
				name = v
			case []string:
				patterns = v
			}
			return true
		})
		l.mu.Lock()
		l.patterns[name] = patterns
		l.mu.Unlock()
	}
	return l.Handler.Handle(ctx, rec)
}

func (l *routeList) of(name string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.patterns[name]
}

// nothingLeftOut looks for sockets that serve could have and that nobody walks.
func (r *rack) nothingLeftOut() {
	r.Helper()
	// These have the handlers of their namesakes, or answer nobody; port 4011 is a proxy's. What
	// lasts is DHCP's own, and Broadcast is DHCP's beside servers of other clusters.
	left := []string{"Broadcast", "HTTP6", "TFTP6", "Links", "MTU", "lasting"}
	if !r.proxy {
		left = append(left, "BootServer")
	}
	all := reflect.ValueOf(r.on.sockets)
	for i := range all.NumField() {
		if name := all.Type().Field(i).Name; all.Field(i).IsZero() != slices.Contains(left, name) && name != "MTU" {
			r.Errorf("%s of listen.Sockets is walked: %v", name, !all.Field(i).IsZero())
		}
	}
}

// examples are what a stranger would put into patterns that have places for it, and behind
// those that take more.
func (r *rack) examples() map[string][]string {
	r.Helper()
	out := map[string][]string{
		"/boot.ipxe": {"/boot.ipxe", "/boot.ipxe?mac=52:54:00:00:00:01&uuid=x&serial=y&platform=efi", "/boot.ipxe?mac=52:54:00:00:00:02", "/boot.ipxe?mac=52:54:00:00:00:02&platform=efi&arch=arm64"},
		"/ignition":  {"/ignition", "/ignition?mac=52:54:00:00:00:01", "/ignition?mac=52:54:00:00:00:02"},
	}
	const program, file = "/boot/{mac}/{name}", "/files/{sha256}/{name}"
	for _, last := range []string{"00", "01", "02", "99"} {
		out[program] = append(out[program], "/boot/52:54:00:00:00:"+last+"/snponly.efi", "/boot/52:54:00:00:00:"+last+"/snponly-arm64.efi")
	}
	for _, b := range r.on.site.public {
		out[file] = append(out[file], "/files/"+b.SHA256+"/"+b.Name)
	}
	for _, path := range []string{"notes.txt", "secrets/w1-bmc", "state/identity.age", "context.json"} {
		sha, _, err := store.HashFile(r.Context(), filepath.Join(r.dir, path))
		if err != nil {
			r.Fatal(err)
		}
		out[file] = append(out[file], "/files/"+sha+"/"+filepath.Base(path))
	}
	for _, f := range []protoreflect.FileDescriptor{api.File_imagectl_v1_enrol_proto, api.File_imagectl_v1_agent_proto, api.File_imagectl_v1_operator_proto, api.File_imagectl_v1_node_proto} {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			service := fmt.Sprintf("/%s/", s.FullName())
			for j := range s.Methods().Len() {
				out[service] = append(out[service], service+string(s.Methods().Get(j).Name()))
			}
		}
	}
	return out
}

// paths are what is asked for because of a pattern.
func (r *rack) paths(pattern string, examples map[string][]string) []string {
	r.Helper()
	path := pattern[strings.Index(pattern, "/"):]
	if all := examples[path]; all != nil {
		return all
	}
	exact := strings.TrimSuffix(path, "{$}")
	if exact == path && (strings.Contains(path, "{") || strings.HasSuffix(path, "/")) {
		r.Errorf("%s is served, and there is no example of what to ask for: add some", pattern)
	}
	return []string{exact}
}

// walkTFTP asks for all that is there, and for the files around.
func (r *rack) walkTFTP() {
	r.Helper()
	fetch := func(name string) []byte {
		c, err := tftp.NewClient(r.tftp.String())
		if err != nil {
			r.Fatal(err)
		}
		c.SetTimeout(20 * time.Second)
		var got bytes.Buffer
		from, err := c.Receive(name, "octet")
		if err == nil {
			_, err = from.WriteTo(&got)
		}
		r.found.add("TFTP", got.Bytes())
		r.found.add("TFTP", fmt.Append(nil, err))
		return got.Bytes()
	}
	for _, name := range server.TFTPNames(server.Extras{GRUB: true, Arm64: true}) {
		if len(fetch(name)) == 0 {
			r.Errorf("TFTP has no %s", name)
		}
	}
	files := 0
	named := regexp.MustCompile(`\(tftp,[^)]*\)/([^']+)'`)
	for _, last := range []string{"00", "01", "02", "99"} {
		for _, uuid := range []string{"none", "01020304-0506-0708-090a-0b0c0d0e0fff"} {
			config := fetch("imagectl/52:54:00:00:00:" + last + "/" + uuid + "/machine.cfg")
			for _, found := range named.FindAllSubmatch(config, -1) {
				if len(fetch(string(found[1]))) > 0 {
					files++
				}
				// What w1 may load is not for everybody.
				fetch(strings.Replace(string(found[1]), "52:54:00:00:00:"+last, "52:54:00:00:00:00", 1))
			}
		}
	}
	if files == 0 {
		r.Error("GRUB was told of no file that it could load")
	}
	for _, name := range []string{"notes.txt", "../notes.txt", "..\\notes.txt", "/" + r.dir + "/notes.txt", "state/identity.age", "../../../../../../../../" + r.dir + "/secrets/w1-bmc", "..%2fcontext.json",
		"imagectl/52:54:00:00:00:02/kernel/../../../secrets/w1-bmc", "imagectl/52:54:00:00:00:02/none/../machine.cfg"} {
		fetch(name)
	}
}
