//go:build vm

package release_test

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	testsite "github.com/imagectl/imagectl/test/site"
	"github.com/imagectl/imagectl/test/vm"
)

// serviceYAML is a site whose server is the guest below.
const serviceYAML = `version: 1
cluster: demo
flatcar: {channel: stable, version: 4593.2.5, keyring: keys/flatcar.asc}
kubernetes: {version: v1.36.3, podCIDR: 10.128.0.0/12, serviceCIDR: 10.112.0.0/16}
etcd: {version: v3.6.5}
cni: {version: v1.9.1}
agent: {source: bin/bootstrapd}
server: {address: 10.98.0.15}
boot:
  interface: boot0
  dhcp: authoritative
  subnets: [{cidr: 10.98.0.0/16, range: {first: 10.98.250.1, last: 10.98.250.250}}]
  ipxe: {bios: ipxe/undionly.kpxe, uefi: ipxe/snponly.efi}
addons: [{name: cni, source: addons/cni.yaml}]
roles:
  control-plane: {kind: control-plane}
  worker: {kind: worker}
machines:
  - {name: cp1, role: control-plane, match: {mac: ["52:54:00:00:00:01"]}, address: 10.98.1.1, disk: {path: /dev/vda}}
  - {name: w1, role: worker, match: {mac: ["52:54:00:00:00:02"]}, address: 10.98.1.2, disk: {path: /dev/vda}}
`

// serviceScript looks at the service from outside, as root, arms a machine, and kills it.
// At the end it has a shell in the service's place, behind the same walls.
const serviceScript = `
say() { echo "REPORT $1=$2" > /dev/kmsg; }
show() { systemctl show imagectl-serve --value --property "$1"; }
process() { awk '/^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):/ { printf "%s%s ", $1, $2 }' "/proc/$(show MainPID)/status"; }
machine() { ip netns exec machine "$@"; }
operator() { IMAGECTL_CONFIG=/var/lib/imagectl/context.json imagectl "$@" 2>&1 | tail -n 1; }
say service "$(show ActiveState) after $(show NRestarts) restarts"
say process "$(process)"
say ports "$(ss -Hlnu 'sport = :67 or sport = :69' | wc -l) $(ss -Hlnt 'sport = :8080 or sport = :8443' | wc -l)"
say state "$(stat -L -c %a /var/lib/imagectl) $(stat -c %a /var/lib/imagectl/identity.age)"
say dhcp "$(machine busybox udhcpc -f -q -n -i boot1 -s /bin/true 2>&1 | grep obtained)"
machine ip address add 10.98.250.1/16 dev boot1
say http "$(machine curl -sS http://10.98.0.15:8080/healthz 2>&1)"
say tftp "$(machine curl -sS tftp://10.98.0.15/undionly.kpxe 2>&1 | cmp - /etc/imagectl/site/ipxe/undionly.kpxe 2>&1)."
say exposure "$(systemd-analyze security --no-pager imagectl-serve.service 2>&1 | sed -nE 's/.*Overall exposure level for imagectl-serve.service: ([0-9.]+).*/\1/p')"
say armed "$(operator machines arm w1)"
systemctl kill --kill-whom=main --signal=KILL imagectl-serve
until [ "$(show NRestarts) $(show ActiveState)" = '1 active' ]; do sleep 1; done
say killed "$(operator machines ls)"
systemctl stop imagectl-serve
say stopped "$(show ActiveState) $(show Result)"
sed -E 's|^ExecStart=.*|ExecStart=/bin/bash /etc/wall.sh|; s|^Type=.*|Type=oneshot|; /^Restart/d' /etc/systemd/system/imagectl-serve.service > /run/systemd/system/wall.service
systemctl daemon-reload
systemctl start wall
say wall "$(show ActiveState) $(cat /var/lib/imagectl/wall | tr '\n' ' ')"
say over over
`

// wireScript is a boot network within the guest: boot0 is the server's, boot1 a machine's.
const wireScript = `
set -e
ip netns add machine
ip link add boot0 type veth peer name boot1 netns machine
ip address add 10.98.0.15/16 dev boot0
ip link set boot0 up
ip -n machine link set boot1 up
`

// wallScript tries to write, and to do what only root may.
const wallScript = `
for path in "$STATE_DIRECTORY" "$CACHE_DIRECTORY" /tmp /etc /etc/imagectl/site /usr/local/bin /var/lib /root /home /boot /dev /sys/kernel /proc/sys/kernel; do
  echo x 2>/dev/null > "$path/wall-was-here" && echo "$path" >> "$STATE_DIRECTORY/wall"
done
for command in 'cat /proc/1/environ' 'unshare --user true' 'mount -t tmpfs none /tmp' 'hostname other' 'dmesg' 'mknod /tmp/null c 1 3'; do
  $command >/dev/null 2>&1 && echo "$command" >> "$STATE_DIRECTORY/wall"
done
`

// systemd starts the unit that we ship, unchanged, with all its walls: as nobody, with two
// capabilities. It serves, starts again when it is killed, and remembers.
func TestTheServiceRunsBehindItsWalls(t *testing.T) {
	t.Parallel()
	if *binDir == "" {
		t.Fatal("which imagectl? go test -tags vm ./test/release -bin DIR")
	}
	dir, program := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{"cluster.yaml": serviceYAML, "keys/flatcar.asc": "no key\n", "bin/bootstrapd": "agent", "addons/cni.yaml": "kind: ConfigMap\n",
		"ipxe/undionly.kpxe": read(t, "/usr/lib/ipxe/undionly.kpxe"), "ipxe/snponly.efi": read(t, "/usr/lib/ipxe/snponly.efi")} {
		write(t, filepath.Join(dir, name), content)
	}
	if err := testsite.Complete(dir, func(store.Format) int64 { return 100 }); err != nil {
		t.Fatal(err)
	}
	// /usr is sealed; a system extension brings the program.
	write(t, filepath.Join(program, "usr/lib/extension-release.d/extension-release.imagectl"), "ID=flatcar\nSYSEXT_LEVEL=1.0\n")
	for name, from := range map[string]string{"imagectl": filepath.Join(*binDir, "imagectl"), "busybox": "/bin/busybox"} {
		path := filepath.Join(program, "usr/local/bin", name)
		write(t, path, read(t, from))
		run(t, "chmod", "755", path)
	}
	run(t, "mksquashfs", program, filepath.Join(dir, "imagectl.raw"), "-quiet", "-no-progress", "-all-root", "-noI", "-noD", "-noF", "-noX")

	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	url := strings.Replace(server.URL, "127.0.0.1", "10.97.0.2", 1)
	mux.Handle("/site/", http.StripPrefix("/site/", http.FileServer(http.Dir(dir))))
	ignition := config(t, "service", func(c map[string]any) {
		storage, systemd := c["storage"].(map[string]any), c["systemd"].(map[string]any)
		file := func(path string, contents string) {
			storage["files"] = append(storage["files"].([]any), map[string]any{"path": path, "mode": 0o644, "contents": map[string]any{"source": contents}})
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() == "imagectl.raw" && filepath.Dir(path) == dir {
				return err
			}
			name, err := filepath.Rel(dir, path)
			file("/etc/imagectl/site/"+name, url+"/site/"+name)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		file("/opt/extensions/imagectl.raw", url+"/site/imagectl.raw")
		file("/etc/look.sh", "data:;base64,"+base64.StdEncoding.EncodeToString([]byte(serviceScript)))
		file("/etc/wire.sh", "data:;base64,"+base64.StdEncoding.EncodeToString([]byte(wireScript)))
		file("/etc/systemd/network/05-boot.network", "data:,%5BMatch%5D%0AName=boot0%0A%5BLink%5D%0AUnmanaged=yes%0A")
		file("/etc/wall.sh", "data:;base64,"+base64.StdEncoding.EncodeToString([]byte(wallScript)))
		storage["links"] = append(storage["links"].([]any), map[string]any{"path": "/etc/extensions/imagectl.raw", "target": "/opt/extensions/imagectl.raw"})
		systemd["units"] = append(systemd["units"].([]any),
			map[string]any{"name": "imagectl-serve.service", "enabled": true, "contents": read(t, "../../docs/imagectl-serve.service")},
			map[string]any{"name": "wire.service", "enabled": true,
				"contents": "[Unit]\nBefore=imagectl-serve.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/bash /etc/wire.sh\n[Install]\nRequiredBy=imagectl-serve.service\n"},
			// It does not wait for the whole system, which waits for it.
			map[string]any{"name": "look.service", "enabled": true,
				"contents": "[Unit]\nAfter=imagectl-serve.service\n[Service]\nExecStart=/bin/bash /etc/look.sh\n[Install]\nWantedBy=multi-user.target\n"})
	})
	mux.HandleFunc("/config.ign", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, ignition) })

	g := boot(t, "-netdev", "user,id=net,net=10.97.0.0/16,host=10.97.0.2,dhcpstart=10.97.0.15", "-device", "virtio-net-pci,netdev=net",
		"-kernel", released(t, "flatcar_production_pxe.vmlinuz"), "-initrd", released(t, "flatcar_production_pxe_image.cpio.gz"),
		"-append", "flatcar.first_boot=1 console=tty0 "+strings.Join(vm.KernelArgs(), " ")+" net.ifnames=0 ignition.config.url="+url+"/config.ign")
	want(t, "service", g.report("service"), "active after 0 restarts")
	// 61184 to 65519 is systemd's range of dynamic users; bits 10 and 13 are
	// CAP_NET_BIND_SERVICE and CAP_NET_RAW (capability.h); 2 is a seccomp filter.
	process := g.report("process")
	if !regexp.MustCompile(`^Uid:6[1-5]\d{3} CapEff:0000000000002400 CapBnd:0000000000002400 NoNewPrivs:1 Seccomp:2 $`).MatchString(process) {
		t.Errorf("the process: %s", process)
	}
	want(t, "ports of udp and of tcp", g.report("ports"), "2 2")
	want(t, "modes of its state", g.report("state"), "700 600")
	want(t, "DHCP", g.report("dhcp"), "udhcpc: lease of 10.98.250.1 obtained from 10.98.0.15, lease time 43200")
	want(t, "HTTP", g.report("http"), "ok")
	want(t, "TFTP", g.report("tftp"), ".")
	if exposure, err := strconv.ParseFloat(g.report("exposure"), 64); err != nil || exposure >= 2.5 {
		t.Errorf("systemd-analyze security gives it %v, want less than 2.5: %v", exposure, err)
	} else {
		t.Logf("systemd-analyze security: %v", exposure)
	}
	wantPrefix(t, "arming", g.report("armed"), "w1: ")
	if got := g.report("killed"); !strings.HasPrefix(got, "w1 ") || !strings.Contains(got, " armed ") {
		t.Errorf("after a kill: %s", got)
	}
	want(t, "stopping", g.report("stopped"), "inactive success")
	// What could be written: its state, its cache, and a /tmp that is its own.
	want(t, "behind the walls", g.report("wall"), "inactive /var/lib/imagectl /var/cache/imagectl /tmp ")
	g.report("over")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
