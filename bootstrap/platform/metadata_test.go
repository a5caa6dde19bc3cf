package platform

import (
	"context"
	"encoding/base64"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

// answer is what a metadata service says to one request.
type answer struct {
	header http.Header
	status int
	body   string
}

// metadata is a service at every address. It refuses a request that it does not know
// to the letter: method, URL, and the header that counts.
type metadata map[string]answer

// start returns the product's client, which reaches the service whatever it dials, and
// the requests that came.
func (m metadata) start(t *testing.T) (*http.Client, *[]string) {
	t.Helper()
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := r.Method + " http://" + r.Host + r.URL.RequestURI()
		for _, h := range []string{"Metadata", "Metadata-Flavor", "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"} {
			if v := r.Header.Get(h); v != "" {
				line += " " + h + ": " + v
			}
		}
		asked = append(asked, line)
		a, ok := m[line]
		if !ok {
			a = answer{status: http.StatusForbidden}
		}
		for k, v := range a.header {
			w.Header()[k] = v
		}
		if a.status != 0 {
			w.WriteHeader(a.status)
		}
		w.Write([]byte(a.body))
	}))
	t.Cleanup(server.Close)
	c := Client()
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}
	return c, &asked
}

const (
	ec2Token = "PUT http://169.254.169.254/latest/api/token X-aws-ec2-metadata-token-ttl-seconds: 60"
	ec2Data  = "GET http://169.254.169.254/latest/user-data X-aws-ec2-metadata-token: AQAE"
	gcpData  = "GET http://169.254.169.254/computeMetadata/v1/instance/attributes/user-data Metadata-Flavor: Google"
	azData   = "GET http://169.254.169.254/metadata/instance/compute/userData?api-version=2021-01-01&format=text Metadata: true"
	hzData   = "GET http://169.254.169.254/hetzner/v1/userdata"
	doData   = "GET http://169.254.169.254/metadata/v1/user-data"
	osData   = "GET http://169.254.169.254/openstack/latest/user_data"
)

func ec2() guest { return guest{"/sys/class/dmi/id/sys_vendor": "Amazon EC2\n"} }

func gcp() guest { return guest{"/sys/class/dmi/id/product_name": "Google Compute Engine\n"} }

func TestFindAsksTheCloudThatTheFirmwareNames(t *testing.T) {
	t.Parallel()
	want, text := config(t, nodeconf.Node)
	flavored := http.Header{"Metadata-Flavor": {"Google"}}
	for _, tt := range []struct {
		name     string
		guest    guest
		metadata metadata
		from     string
	}{
		{"EC2", ec2(), metadata{ec2Token: {body: "AQAE"}, ec2Data: {body: text}}, "the metadata of Amazon EC2"},
		{"Google", gcp(), metadata{gcpData: {header: flavored, body: text}}, "the metadata of Google Cloud"},
		{"Azure", guest{"/sys/class/dmi/id/chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77\n", "/sys/class/dmi/id/sys_vendor": "Microsoft Corporation\n"}, metadata{azData: {body: base64.StdEncoding.EncodeToString([]byte(text))}}, "the metadata of Azure"},
		{"Hetzner", guest{"/sys/class/dmi/id/sys_vendor": "Hetzner\n"}, metadata{hzData: {body: text}}, "the metadata of Hetzner"},
		{"DigitalOcean", guest{"/sys/class/dmi/id/sys_vendor": "DigitalOcean\n"}, metadata{doData: {body: text}}, "the metadata of DigitalOcean"},
		{"OpenStack", guest{"/sys/class/dmi/id/product_name": "OpenStack Compute\n"}, metadata{osData: {body: text}}, "the metadata of OpenStack"},
		{"a config drive comes first", guest{"/sys/class/dmi/id/product_name": "OpenStack Nova\n", "config-2 openstack/latest/user_data": text}, nil, "config-2 openstack/latest/user_data"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			web, asked := tt.metadata.start(t)
			got, from, err := Find(t.Context(), tt.guest, web)
			if err != nil {
				t.Fatalf("%v, after %q", err, *asked)
			}
			if diff := cmp.Diff(want, got); diff != "" || from != tt.from {
				t.Errorf("from %q, want %q (-want +got):\n%s", from, tt.from, diff)
			}
			if len(*asked) != len(tt.metadata) {
				t.Errorf("asked %q", *asked)
			}
		})
	}
}

func TestFindSaysWhatIsWrongInTheCloud(t *testing.T) {
	t.Parallel()
	_, text := config(t, nodeconf.Node)
	const useless = "what the platform says is of no use: "
	for _, tt := range []struct {
		name     string
		guest    guest
		metadata metadata
		want     string
	}{
		{"no user data", ec2(), metadata{ec2Token: {body: "AQAE"}, ec2Data: {status: http.StatusNotFound, body: "no"}}, useless + "the metadata of Amazon EC2: this machine has no user data"},
		{"metadata is off", ec2(), metadata{ec2Token: {status: http.StatusForbidden}}, useless + "the metadata of Amazon EC2: asking for a session: PUT http://169.254.169.254/latest/api/token: 403 Forbidden"},
		{"no session", ec2(), metadata{ec2Token: {}}, useless + "the metadata of Amazon EC2: asking for a session: http://169.254.169.254/latest/api/token gives no token"},
		{"somebody else answers", gcp(), metadata{gcpData: {body: text}}, useless + "the metadata of Google Cloud: GET http://169.254.169.254/computeMetadata/v1/instance/attributes/user-data: the answer lacks Metadata-Flavor: Google, so it is not that service's"},
		{"sent elsewhere", gcp(), metadata{gcpData: {status: http.StatusFound, header: http.Header{"Location": {"http://10.0.0.66/"}}}}, useless + "the metadata of Google Cloud: GET http://169.254.169.254/computeMetadata/v1/instance/attributes/user-data: 302 Found"},
		{"too long", ec2(), metadata{ec2Token: {body: "AQAE"}, ec2Data: {body: strings.Repeat(" ", Max+2)}}, useless + "the metadata of Amazon EC2: it has more than 65536 bytes"},
		{"a machine of no cloud", guest{"/sys/class/dmi/id/sys_vendor": "Supermicro\n"}, metadata{hzData: {body: text}}, "the platform says nothing: there is no fw_cfg key opt/org.imagectl/node, no medium labelled CONTEXT, cidata, config-2 or OVF ENV and no guestinfo.imagectl.node, and the firmware names no cloud"},
		{"firmware that cannot be read", guest{"/sys/class/dmi/id/sys_vendor": "unreadable"}, nil, useless + "finding out which cloud this is: input/output error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			web, asked := tt.metadata.start(t)
			_, _, err := Find(t.Context(), tt.guest, web)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v\nwant %s\nasked %q", err, tt.want, *asked)
			}
		})
	}
}
