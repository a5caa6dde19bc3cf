//go:build upload

package glance_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"text/template"

	"github.com/imagectl/imagectl/test/daemon"
)

// openstack is Debian's Keystone and Glance, on SQLite and a directory.
type openstack struct {
	// keystone ends in /v3; image is where Glance is, without a version.
	keystone, image string
	glance          *exec.Cmd
	// staging is the only address from where Glance fetches.
	staging string

	settings settings
	// token is an administrator's; service and member are IDs of the image service and
	// of the role.
	token, service, member string
}

// settings are those of the configuration files.
type settings struct {
	Dir, Password, Keystone, Endpoint string
	Port, Staging, Plugins            string
	// Limits has Glance ask Keystone for them, which takes several requests each time.
	Limits bool
}

const debian = "apt-get install python3-keystone python3-glance"

// regions: in the second one another Glance, over the same store, asks for limits and
// makes raw images of what is imported.
const region, strict = "RegionOne", "Strict"

// startOpenStack starts both, with all that the tests need to be registered.
func startOpenStack(t *testing.T) *openstack {
	t.Helper()
	c := &openstack{settings: settings{Dir: t.TempDir(), Password: rand.Text()}}
	t.Cleanup(func() { c.says(t) })
	for _, dir := range []string{"images", "staging", "tasks", "fernet", "credential"} {
		if err := os.Mkdir(filepath.Join(c.settings.Dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	address := daemon.Address(t)
	c.settings.Keystone = "http://" + address
	c.keystone = c.settings.Keystone + "/v3"
	c.staging = daemon.Address(t)
	_, c.settings.Staging, _ = net.SplitHostPort(c.staging)
	c.write(t, "glance-paste.ini", "glance-paste.ini")
	glance := c.address(t, "glance-api.conf")
	c.image = "http://" + glance

	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { c.run(t, "glance.cmd.manage", "glance-api.conf", "db_sync") })
	conf := c.setUpKeystone(t)
	beside.Wait()
	if t.Failed() {
		t.FailNow()
	}
	c.unlock(t)
	c.startKeystone(t, conf, address)
	c.register(t)
	c.glance = c.startGlance(t, "glance-api.conf", c.image)
	return c
}

// says shows what the servers wrote last, if the test has failed.
func (c *openstack) says(t *testing.T) {
	if !t.Failed() {
		return
	}
	const most = 6000
	for _, name := range []string{"keystone.log", "glance.log"} {
		if b, err := os.ReadFile(filepath.Join(c.settings.Dir, name)); err == nil {
			t.Logf("%s ends with: %s", name, b[max(0, len(b)-most):])
		}
	}
}

// write fills in a configuration file of testdata.
func (c *openstack) write(t *testing.T, name, as string) string {
	t.Helper()
	text, err := template.ParseFiles(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := text.Execute(&b, c.settings); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.settings.Dir, as)
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// address is one for a Glance, whose configuration file is written.
func (c *openstack) address(t *testing.T, as string) string {
	t.Helper()
	a := daemon.Address(t)
	_, c.settings.Port, _ = net.SplitHostPort(a)
	c.write(t, "glance-api.conf", as)
	return a
}

// python is a program of Debian's, as its own command runs it.
func (c *openstack) python(module, conf string, args ...string) *exec.Cmd {
	run := fmt.Sprintf("import sys; from %s import main; sys.exit(main())", module)
	cmd := exec.Command("/usr/bin/python3", append([]string{"-c", run, "--config-file", filepath.Join(c.settings.Dir, conf)}, args...)...)
	cmd.Dir = c.settings.Dir
	return cmd
}

// run runs a program to its end. It does not end the test, whose own goroutine may be
// another.
func (c *openstack) run(t *testing.T, module, conf string, args ...string) {
	t.Helper()
	if said, err := c.python(module, conf, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %s (%s): %v: %s", module, strings.Join(args, " "), debian, err, said)
	}
}

// unlock lets the data bases be read while they are written, as those of real sites are.
func (c *openstack) unlock(t *testing.T) {
	t.Helper()
	const run = `import sqlite3; [sqlite3.connect(name).execute("PRAGMA journal_mode=WAL") for name in ("keystone.db", "glance.db")]`
	cmd := exec.Command("/usr/bin/python3", "-c", run)
	cmd.Dir = c.settings.Dir
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("changing the data bases: %v: %s", err, said)
	}
}

// setUpKeystone gives the path of its configuration.
func (c *openstack) setUpKeystone(t *testing.T) string {
	t.Helper()
	conf := c.write(t, "keystone.conf", "keystone.conf")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"fernet_setup", "--keystone-user", me.Uid, "--keystone-group", me.Gid}, {"db_sync"},
		{"bootstrap", "--bootstrap-password", c.settings.Password, "--bootstrap-region-id", region,
			"--bootstrap-admin-url", c.keystone, "--bootstrap-internal-url", c.keystone, "--bootstrap-public-url", c.keystone},
	} {
		c.run(t, "keystone.cmd.manage", "keystone.conf", args...)
	}
	return conf
}

func (c *openstack) startKeystone(t *testing.T, conf, address string) {
	t.Helper()
	launcher, err := filepath.Abs("testdata/serve_keystone.py")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", launcher)
	cmd.Dir = c.settings.Dir
	cmd.Env = append(os.Environ(), "LISTEN="+address, "ERRORS="+filepath.Join(c.settings.Dir, "keystone.log"), "OS_KEYSTONE_CONFIG_FILES="+conf)
	daemon.Start(t, cmd, debian, answers(c.keystone))
}

func (c *openstack) startGlance(t *testing.T, conf, at string) *exec.Cmd {
	t.Helper()
	cmd := c.python("glance.cmd.api", conf)
	daemon.Start(t, cmd, debian, answers(at))
	return cmd
}

// startStrict starts the other Glance.
func (c *openstack) startStrict(t *testing.T) {
	t.Helper()
	const conf = "strict.conf"
	at := "http://" + c.address(t, conf)
	c.settings.Endpoint = c.endpoint(t, strict, at)
	c.settings.Plugins, c.settings.Limits = "image_conversion", true
	c.write(t, "glance-api.conf", conf)
	c.startGlance(t, conf, at)
}

func answers(url string) func() error {
	return func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}

// register tells Keystone of Glance and of limits.
func (c *openstack) register(t *testing.T) {
	t.Helper()
	c.token = c.auth(t, object{"identity": object{"methods": []string{"password"}, "password": object{"user": object{
		"name": "admin", "domain": object{"id": "default"}, "password": c.settings.Password,
	}}}, "scope": object{"project": object{"name": "admin", "domain": object{"id": "default"}}}})
	c.call(t, "POST", c.keystone+"/regions", object{"region": object{"id": strict}})
	c.service = c.call(t, "POST", c.keystone+"/services", object{"service": object{"type": "image", "name": "glance"}}).sub("service").text("id")
	c.endpoint(t, region, c.image)
	var all []object
	for _, name := range []string{"image_count_total", "image_count_uploading", "image_size_total", "image_stage_total"} {
		all = append(all, object{"service_id": c.service, "region_id": strict, "resource_name": name, "default_limit": 1000})
	}
	c.call(t, "POST", c.keystone+"/registered_limits", object{"registered_limits": all})
	roles, _ := c.call(t, "GET", c.keystone+"/roles?name=member", nil)["roles"].([]any)
	if len(roles) != 1 {
		t.Fatalf("Keystone has the roles %v", roles)
	}
	c.member = answered(roles[0].(object)).text("id")
}

func (c *openstack) endpoint(t *testing.T, region, url string) string {
	t.Helper()
	return c.call(t, "POST", c.keystone+"/endpoints", object{"endpoint": object{
		"service_id": c.service, "interface": "public", "region_id": region, "url": url,
	}}).sub("endpoint").text("id")
}

// auth gives a token.
func (c *openstack) auth(t *testing.T, how object) string {
	t.Helper()
	b, err := json.Marshal(object{"auth": how})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(c.keystone+"/auth/tokens", "application/json", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("asking for a token: %s: %s", resp.Status, text)
	}
	return resp.Header.Get("X-Subject-Token")
}

// answered is a JSON object that was an answer.
type answered object

func (a answered) text(key string) string {
	s, _ := a[key].(string)
	return s
}

func (a answered) sub(key string) answered {
	o, _ := a[key].(object)
	return answered(o)
}

// call is an administrator's.
func (c *openstack) call(t *testing.T, method, url string, body any) answered {
	t.Helper()
	return c.as(t, c.token, method, url, body)
}

func (c *openstack) as(t *testing.T, token, method, url string, body any) answered {
	t.Helper()
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			t.Fatal(err)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, &b)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", token)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s, %v: %s", method, url, resp.Status, err, text)
	}
	out := answered{}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &out); err != nil {
			t.Fatalf("%s %s: %v: %s", method, url, err, text)
		}
	}
	return out
}
