package cli

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// cloudSite has entries for clouds, each of which refuses everybody.
func cloudSite(t *testing.T) *uploadSite {
	t.Helper()
	s := newUploadSite(t)
	nobody := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, `{"error": {"code": 401, "message": "nobody comes in here"}}`, http.StatusUnauthorized)
	}))
	t.Cleanup(nobody.Close)
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "OS_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("CLOUD_SECRET", "secret")
	s.write("clouds.yaml", `clouds:
  prod:
    region_name: eu
    auth: {auth_url: "`+nobody.URL+`/v3", application_credential_id: robot, application_credential_secret: secret}
`)
	t.Setenv("OS_CLIENT_CONFIG_FILE", s.path("clouds.yaml"))
	b, err := os.ReadFile(s.path("cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("cluster.yaml", string(b)+`
  - {name: clouds, type: openstack, options: {cloud: prod}}
  - {name: absent, type: openstack, options: {cloud: dev}}
  - {name: both, type: openstack, username: robot, options: {cloud: prod}}
  - {name: half, type: openstack, username: robot, password: {env: CLOUD_SECRET}}
  - {name: credential, type: openstack, endpoint: "`+nobody.URL+`/v3", username: robot, password: {env: CLOUD_SECRET}}
  - {name: environment, type: openstack}
  - {name: firmware, type: openstack, options: {cloud: prod, firmware: coreboot}}
  - {name: import, type: openstack, options: {cloud: prod, import: magic}}
  - {name: ocean, type: digitalocean, endpoint: "`+nobody.URL+`", region: fra1, password: {env: CLOUD_SECRET}}
  - {name: behind, type: digitalocean, region: fra1, password: {env: CLOUD_SECRET}}
  - {name: presigned, type: digitalocean, region: fra1, password: {env: CLOUD_SECRET}, options: {directory: "https://b.example.org/?X-Amz-Signature=1"}}
  - {name: bucket, type: s3, endpoint: "`+nobody.URL+`", bucket: vms, region: eu, username: k, password: {env: CLOUD_SECRET}}
  - {name: host, type: ssh, endpoint: "ssh://ops@127.0.0.1:1/srv/images", password: {env: CLOUD_SECRET}, options: {hostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFP7Xx4NKV4oqKYLpYrX5bBDSHHn7M5YpyWrpTJmJp5d"}}
  - {name: pathless, type: digitalocean, endpoint: "`+nobody.URL+`", region: fra1, password: {env: CLOUD_SECRET}, options: {stage: host}}
  - {name: twice, type: digitalocean, region: fra1, password: {env: CLOUD_SECRET}, options: {stage: bucket, directory: "https://b.example.org"}}
  - {name: put, type: openstack, options: {cloud: prod, stage: bucket}}
  - {name: staged, type: digitalocean, endpoint: "`+nobody.URL+`", region: fra1, password: {env: CLOUD_SECRET}, options: {stage: bucket}}
  - {name: hetzner, type: hetzner, endpoint: "`+nobody.URL+`", password: {env: CLOUD_SECRET}}
`)
	return s
}

func TestUploadToClouds(t *testing.T) {
	s := cloudSite(t)
	s.build(1)
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"list clouds", exitAuth, "asking Keystone for a token: not allowed: 401 Unauthorized: "},
		{"list credential", exitAuth, "nobody comes in here"},
		{"list absent", exitUsage, `cloud "dev" not found`},
		{"list both", exitUsage, "leave them out here"},
		{"list half", exitUsage, "an application credential takes endpoint"},
		{"list environment", exitUsage, "OS_AUTH_URL"},
		{"list firmware", exitUsage, `option firmware "coreboot" is neither bios nor uefi`},
		{"list import", exitUsage, `reading the method "magic": want put, glance-direct or web-download`},
		{"list ocean", exitAuth, "calling GET /v2/images"},
		{"behind worker --out " + s.path("out"), exitUsage, "give --listen with a fixed port and --advertise"},
		{"list behind --help", exitDone, "Usage"},
		{"list presigned", exitUsage, "want an http or https URL without a query"},
		{"list host", exitUsage, "a host is no platform: option stage of others names it"},
		{"list pathless", exitUsage, "it fetches from a URL: give host option url"},
		{"list twice", exitUsage, "want one of them"},
		{"list put", exitUsage, "option stage and option directory want import: web-download"},
		{"list staged", exitAuth, "calling GET /v2/images"},
		{"list hetzner", exitAuth, "calling GET /images"},
		{"hetzner worker --out " + s.path("out"), exitUsage, "build worker --format raw"},
	} {
		code, out, errs := s.imagectl(append([]string{"upload"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("upload %s: %d, want %d with %q: %s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
}

// The environment of OpenStack's client is enough.
func TestUploadToOpenStackByTheEnvironment(t *testing.T) {
	s := cloudSite(t)
	t.Setenv("OS_AUTH_URL", "http://keystone.example.org/v3")
	t.Setenv("OS_APPLICATION_CREDENTIAL_ID", "robot")
	t.Setenv("OS_APPLICATION_CREDENTIAL_SECRET", "secret")
	s.wants(exitAuth, "the credentials would go there readable by anybody on the way", "upload", "list", "environment")
}
