package cli

import (
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/butane/plan"
)

func TestHTTPSBootIsOffOrComplete(t *testing.T) {
	t.Parallel()
	for _, f := range []bootTLSFlags{{certificate: "boot.crt"}, {key: "boot.key"}} {
		err := serveFlags{dashboard: dashboardOff, tls: f}.check()
		if err == nil || err.Error() != "--boot-tls-cert and --boot-tls-key belong together: give both or neither" {
			t.Errorf("%+v: got %v", f, err)
		}
	}
	if cfg, err := (bootTLSFlags{port: 8444}).load(plan.Plan{}); cfg != nil || err != nil {
		t.Errorf("without a certificate: got %v, %v", cfg, err)
	}
	if _, err := (bootTLSFlags{certificate: "no-such.crt", key: "no-such.key"}).load(plan.Plan{}); err == nil || !strings.HasPrefix(err.Error(), "reading --boot-tls-cert: open no-such.crt: ") {
		t.Errorf("a missing file: got %v", err)
	}
}

// What is wrong is said before anything is opened or made.
func TestServeSaysWhatIsWrongBeforeItServes(t *testing.T) {
	const address = "192.0.2.1"
	now := time.Now()
	machines := `machines:
  - {name: cp1, role: control-plane, match: {mac: ["52:54:00:00:00:00"]}, address: 192.0.2.10, disk: {path: /dev/vda}}
`
	site := func(boot string) string {
		return "server: {address: " + address + "}\nboot:\n  ipxe: {bios: ipxe/undionly.kpxe, uefi: ipxe/snponly.efi}\n" + boot + machines
	}
	proxy := site("  interface: nosuch0\n  dhcp: proxy\n")
	good, key := bootCertificate(t, address, now)
	old, oldKey := bootCertificate(t, address, now.Add(-2*time.Hour))
	early, earlyKey := bootCertificate(t, address, now.Add(2*time.Hour))
	other, otherKey := bootCertificate(t, "192.0.2.2", now)
	tls := []string{"--boot-tls-cert", "boot.crt", "--boot-tls-key", "boot.key"}
	with := func(certificate, key []byte) map[string]string {
		return map[string]string{"boot.crt": string(certificate), "boot.key": string(key)}
	}
	uefi := efiProgram(t)
	for _, c := range []struct {
		name  string
		site  string
		files map[string]string
		args  []string
		code  int
		want  string // a regular expression for all that is said
	}{
		{"no such interface", proxy, nil, nil, exitFailed, `imagectl: listening on nosuch0: route ip\+net: no such network interface \(set boot.interface in cluster.yaml to one of \[.*lo.*\]\)`},
		{"no such port for metrics", proxy, nil, []string{"--metrics", "127.0.0.1:99999"}, exitUsage, `imagectl: --metrics: invalid port "99999" parsing "127.0.0.1:99999"; give an address and a port, such as 127.0.0.1:9640`},
		{"a certificate that has ended", proxy, with(old, oldKey), tls, exitUsage, `imagectl: the certificate for HTTPS boot is good from \S+ to \S+, and now it is \S+`},
		{"a certificate of tomorrow", proxy, with(early, earlyKey), tls, exitUsage, `imagectl: the certificate for HTTPS boot is good from \S+ to \S+, and now it is \S+`},
		{"a certificate of another server", proxy, with(other, otherKey), tls, exitUsage, `imagectl: the certificate for HTTPS boot is not for server.address: .* \(make it with subjectAltName=IP:192.0.2.1\)`},
		{"a certificate with another key", proxy, with(good, otherKey), tls, exitUsage, `imagectl: reading the certificate for HTTPS boot: tls: private key does not match public key`},
		{"a certificate that is none", proxy, with(key, key), tls, exitUsage, `imagectl: reading the certificate for HTTPS boot: tls: .*`},
		{"iPXE for the other firmware", proxy, map[string]string{"ipxe/undionly.kpxe": uefi}, nil, exitFailed, `imagectl: checking boot.ipxe.bios: it is a program for UEFI \(x86-64\), which a BIOS cannot start; lock iPXE's undionly.kpxe there`},
		{"iPXE for another processor", proxy, map[string]string{"ipxe/snponly.efi": strings.Replace(uefi, "PE\x00\x00\x64\x86", "PE\x00\x00\x64\xaa", 1)}, nil, exitFailed, `imagectl: checking boot.ipxe.uefi: it is for arm64, and the machines are x86-64; lock iPXE's snponly.efi of x86_64-efi there`},
		{"iPXE of x86-64 for arm64", strings.Replace(proxy, "snponly.efi}", "snponly.efi, arm64: ipxe/arm64.efi}", 1), map[string]string{"ipxe/arm64.efi": uefi}, nil, exitFailed, `imagectl: checking boot.ipxe.arm64: it is for x86-64, and the machines are arm64; lock iPXE's snponly.efi of arm64-efi there`},
		{"no build", proxy, nil, []string{"--out", "elsewhere"}, exitFailed, `imagectl: there is no elsewhere/manifest.json: run imagectl build, or say with --out where it wrote to`},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"ipxe/undionly.kpxe": "no PE header", "ipxe/snponly.efi": uefi}
			maps.Copy(files, c.files)
			t.Chdir(siteWith(t, c.site, files))
			refused(t, c.args, c.code, c.want)
		})
	}
	// Findings in cluster.yaml are for whoever edits it after the site was made.
	for _, c := range []struct{ name, boot, want string }{
		{"subnets that overlap", "  interface: eth1\n  dhcp: authoritative\n  subnets:\n    - {cidr: 192.0.2.0/24}\n    - {cidr: 192.0.2.128/25, router: 192.0.2.129, interface: eth2}\n",
			`(?s)cluster.yaml:20:14: error: boot.subnets\[1\].cidr: boot.subnets\[1\] 192.0.2.128/25 overlaps boot.subnets\[0\] 192.0.2.0/24.*`},
		{"a range with the server in it", "  interface: eth1\n  dhcp: authoritative\n  subnets:\n    - {cidr: 192.0.2.0/24, range: {first: 192.0.2.1, last: 192.0.2.9}}\n",
			`(?s)cluster.yaml:13:19: error: server.address: the server's address 192.0.2.1 is inside the dynamic range 192.0.2.1 to 192.0.2.9.*`},
		{"a range with a machine in it", "  interface: eth1\n  dhcp: authoritative\n  subnets:\n    - {cidr: 192.0.2.0/24, range: {first: 192.0.2.5, last: 192.0.2.20}}\n",
			`(?s)cluster.yaml:.*192.0.2.10 is inside the dynamic range 192.0.2.5 to 192.0.2.20, where another machine may get it.*`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := siteWith(t, proxy, map[string]string{"ipxe/undionly.kpxe": "no PE header", "ipxe/snponly.efi": uefi})
			t.Chdir(dir)
			b, err := os.ReadFile("cluster.yaml")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile("cluster.yaml", []byte(strings.Replace(string(b), proxy, site(c.boot), 1)), 0o644); err != nil {
				t.Fatal(err)
			}
			refused(t, nil, exitUsage, c.want)
		})
	}
}

// refused runs serve in the present directory, which must say one thing, end, and
// leave nothing.
func refused(t *testing.T, args []string, code int, want string) {
	t.Helper()
	out, errs, got := imagectl(t, append([]string{"serve", "--state", "state"}, args...)...)
	if got != code || out != "" || !regexp.MustCompile("^"+want+"\n$").MatchString(errs) {
		t.Errorf("got %d, %q and on standard output %q; want %d, %s", got, errs, out, code, want)
	}
	for _, path := range []string{"state", "context.json"} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s was made: %v", path, err)
		}
	}
}
