package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/test/site"
)

// build makes networks, etcd, and both servers.
func (d *drill) build(ctx context.Context) error {
	var err error
	if d.wire, err = newWire(d.heard); err != nil {
		return err
	}
	if err := d.plug(ctx, d.dir); err != nil {
		return err
	}
	go d.wire.run()
	for _, args := range [][]string{
		// This namespace has the machines' addresses, so its bridges must not speak.
		{"link", "add", "bootbr", "type", "bridge"}, {"link", "set", "bootbr", "arp", "off", "addrgenmode", "none", "up"},
		{"link", "set", "rack", "master", "bootbr", "addrgenmode", "none", "txqueuelen", "20000", "up"},
		{"link", "add", "storebr", "type", "bridge"}, {"address", "add", etcdNet + "1/24", "dev", "storebr"}, {"link", "set", "storebr", "up"},
	} {
		if err := run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	if err := d.certificates(); err != nil {
		return err
	}
	var initial []string
	for i := range members {
		initial = append(initial, fmt.Sprintf("e%d=https://%s:2380", i, d.member(i)))
	}
	for i := range members {
		p, err := spawn(ctx, fmt.Sprintf("e%d", i), d.dir, `ip address add `+d.member(i)+`/24 dev store && ip link set store up || exit 1
exec `+filepath.Join(d.etcdDir, "etcd")+` --name e`+strconv.Itoa(i)+` --data-dir e`+strconv.Itoa(i)+` --log-level warn --initial-cluster "$INITIAL" \
 --listen-client-urls https://0.0.0.0:2379 --advertise-client-urls https://`+d.member(i)+`:2379 \
 --listen-peer-urls https://0.0.0.0:2380 --initial-advertise-peer-urls https://`+d.member(i)+`:2380 \
 --cert-file etcd.pem --key-file etcd.key --client-cert-auth --trusted-ca-file ca.pem \
 --peer-cert-file etcd.pem --peer-key-file etcd.key --peer-client-cert-auth --peer-trusted-ca-file ca.pem`,
			[]string{"INITIAL=" + strings.Join(initial, ",")}, link{"store", "storebr"})
		if err != nil {
			return err
		}
		d.etcd = append(d.etcd, p)
	}
	if err := d.shop(ctx); err != nil {
		return err
	}
	if _, err := d.command(ctx, "server", "move", "--to-etcd", d.endpoints(), "--etcd-ca", "ca.pem", "--etcd-cert", "etcd.pem", "--etcd-key", "etcd.key", "--state", "state1"); err != nil {
		return fmt.Errorf("%w\n%s", err, d.etcd[0].tail())
	}
	if _, err := d.command(ctx, "server", "join", "--etcd", d.endpoints(), "--etcd-ca", "ca.pem", "--etcd-cert", "etcd.pem", "--etcd-key", "etcd.key", "--identity", "state1/identity.age", "--state", "state2"); err != nil {
		return err
	}
	if err := d.second(); err != nil {
		return err
	}
	for i := range d.servers {
		dir := d.dir
		if i > 0 {
			dir = filepath.Join(d.dir, "second")
		}
		if err := d.start(ctx, "s"+strconv.Itoa(i+1), dir, i); err != nil {
			return err
		}
	}
	// Who has begun to serve needs the store of artefacts no more.
	if err := d.registry.kill(); err != nil {
		return err
	}
	return d.learn()
}

// start runs imagectl serve in dir, with the state directory and the address of server i.
func (d *drill) start(ctx context.Context, name, dir string, i int) error {
	n := strconv.Itoa(i + 1)
	p, err := spawn(ctx, name, dir, `ip address add `+d.servers[i].String()+`/16 dev rack && ip link set rack addrgenmode none txqueuelen 20000 up || exit 1
ip address add `+etcdNet+"1"+n+`/24 dev store && ip link set store up || exit 1
exec `+d.imagectl+` serve --state `+filepath.Join(d.dir, "state"+n), []string{"IMAGECTL_CONFIG=" + d.context(i), "IMAGECTL_CACHE=" + filepath.Join(d.dir, "cache"+n)}, link{"rack", "bootbr"}, link{"store", "storebr"})
	if err != nil {
		return err
	}
	d.serve = append(d.serve, p)
	return p.says("imagectl serve: ready: ")
}

// shop runs the registry that the servers share, and has the build put into it.
func (d *drill) shop(ctx context.Context) error {
	const config = "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: shop}}\nhttp: {addr: %q}\n"
	if err := os.WriteFile(filepath.Join(d.dir, "shop.yml"), fmt.Appendf(nil, config, registryAddress), 0o644); err != nil {
		return err
	}
	var err error
	d.registry, err = spawn(ctx, "shop", d.dir, `ip address add `+etcdNet+`30/24 dev store && ip link set store up || exit 1
exec docker-registry serve shop.yml`, nil, link{"store", "storebr"})
	if err != nil {
		return err
	}
	for {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", registryAddress)
		if err == nil {
			c.Close()
			break
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%w: the registry does not answer:\n%s", err, d.registry.tail())
		}
	}
	_, err = d.command(ctx, "server", "publish")
	return err
}

// second makes the other server's directory: it has the manifest of the build and nothing
// else of it.
func (d *drill) second() error {
	for _, name := range []string{"cluster.yaml", "imagectl.lock", "flatcar.asc", "bootstrapd", "cni.yaml", "out/manifest.json"} {
		b, err := os.ReadFile(filepath.Join(d.dir, name))
		if err != nil {
			return err
		}
		if err := site.Write(filepath.Join(d.dir, "second", name), b); err != nil {
			return err
		}
	}
	for _, name := range []string{"ca.pem", "etcd.pem", "etcd.key"} {
		if err := os.Symlink(filepath.Join(d.dir, name), filepath.Join(d.dir, "second", name)); err != nil {
			return err
		}
	}
	return nil
}

// member is the address of a member of etcd, client its URL for clients.
func (d *drill) member(i int) string { return etcdNet + "2" + strconv.Itoa(i) }
func (d *drill) client(i int) string { return "https://" + d.member(i) + ":2379" }

// context is the context file that a server writes.
func (d *drill) context(i int) string {
	return filepath.Join(d.dir, fmt.Sprintf("context%d.json", i+1))
}

func (d *drill) endpoints() string {
	var all []string
	for i := range members {
		all = append(all, d.client(i))
	}
	return strings.Join(all, ",")
}

// command runs imagectl in this namespace.
func (d *drill) command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.imagectl, args...)
	cmd.Dir = d.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("imagectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// learn reads a server's context file: what machines find in node.json, and what the
// operator calls with.
func (d *drill) learn() error {
	b, err := os.ReadFile(d.context(0))
	if err != nil {
		return err
	}
	var c struct {
		Servers              []string
		CA, Certificate, Key string
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	if d.ca, err = pki.ParseCertificatePEM([]byte(c.CA)); err != nil {
		return err
	}
	d.roots = x509.NewCertPool()
	d.roots.AddCert(d.ca)
	if d.urls = c.Servers; len(d.urls) != len(d.servers) {
		return fmt.Errorf("the context file names the servers %v", c.Servers)
	}
	return nil
}
