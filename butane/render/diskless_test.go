package render

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/butane/plan"
)

func disklessInput(t *testing.T) DisklessInput {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join("testdata", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	conf, err := nodeconf.Config{Cluster: "lab", Mode: nodeconf.Node, Servers: []string{"https://10.0.0.2:8443"}, CA: string(ca), Machine: "w1", TPM: true}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	served := func(name, digit string) ExtensionFile {
		sum := strings.Repeat(digit, 64)
		return ExtensionFile{Name: name, URL: "http://10.0.0.2:8080/files/" + sum + "/" + name + ".raw", SHA256: sum}
	}
	return DisklessInput{Machine: "w1", Role: worker(t), NodeConfig: conf,
		Network:    []File{{Path: networkDir + "eth0.network", Mode: 0o644, Content: []byte("[Match]\nName=eth0\n")}},
		Extensions: []ExtensionFile{served("imagectl", "a"), served("kubernetes", "b")}}
}

func TestWhatADisklessMachineIsNotGiven(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*DisklessInput)
		want   string
	}{
		{"no agent", func(in *DisklessInput) { in.Extensions = in.Extensions[1:] }, "rendering the Ignition of w1: the extension imagectl is missing: nothing would enrol the machine"},
		{"an installer's node.json", func(in *DisklessInput) { in.NodeConfig = installerInput(t).NodeConfig }, `rendering the Ignition of w1: node.json is for mode "installer", want "node" without a token`},
		{"a token", func(in *DisklessInput) {
			in.NodeConfig = []byte(strings.Replace(string(in.NodeConfig), `"tpm": true`, `"token": "w1.secret"`, 1))
		}, `rendering the Ignition of w1: node.json is for mode "node", want "node" without a token`},
		{"a snippet that writes disks", func(in *DisklessInput) {
			in.Role.Butane = []plan.Snippet{{File: "data.bu", Content: []byte("variant: flatcar\nversion: 1.1.0\nstorage:\n  disks:\n    - {device: /dev/sdb, wipe_table: true}\n")}}
		}, "rendering the Ignition of w1: data.bu writes disks: storage.disks"},
	} {
		in := disklessInput(t)
		tt.change(&in)
		if _, err := Diskless(in); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}
