package render

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	ignition "github.com/coreos/ignition/v2/config/v3_4"
	"github.com/coreos/ignition/v2/config/v3_4/types"
	"github.com/vincent-petithory/dataurl"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/butane/lockdown"
	"github.com/imagectl/imagectl/butane/plan"
)

var update = flag.Bool("update", false, "rewrite testdata")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from what is rendered; if that is meant: go test ./butane/render -update\n%s", file, got)
	}
}

// worker is a role with a snippet that embeds a local file.
func worker(t *testing.T) plan.Role {
	t.Helper()
	file := filepath.Join("testdata", "worker.bu")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Role{
		Name:       "worker",
		Butane:     []plan.Snippet{{File: file, Content: content, Dir: "testdata"}},
		KernelArgs: []string{"console=tty0", "console=ttyS0,115200n8"},
	}
}

// installerInput has a fixed certificate: a fresh one would not be golden.
func installerInput(t *testing.T) InstallerInput {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join("testdata", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	conf, err := nodeconf.Config{Cluster: "lab", Mode: nodeconf.Installer, Servers: []string{"https://10.0.0.2:8443"}, CA: string(ca)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return InstallerInput{NodeConfig: conf, AgentURL: "http://10.0.0.2:8080/files/" + strings.Repeat("ab", 32) + "/imagectl.raw", AgentSHA256: strings.Repeat("ab", 32)}
}

// outputs are everything that this package hands to anybody.
func outputs(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	var err error
	if out["control-plane.ign"], err = Role(plan.Role{Name: "control-plane", ControlPlane: true}); err != nil {
		t.Fatal(err)
	}
	if out["worker.ign"], err = Role(worker(t)); err != nil {
		t.Fatal(err)
	}
	if out["installer.ign"], err = Installer(installerInput(t)); err != nil {
		t.Fatal(err)
	}
	loaded := installerInput(t)
	loaded.AgentURL, loaded.AgentSHA256, loaded.AgentPath = "", "", "/oem/imagectl.raw"
	if out["loaded.ign"], err = Installer(loaded); err != nil {
		t.Fatal(err)
	}
	if out["medium.ign"], err = Medium("http://10.0.0.2:8080/ignition"); err != nil {
		t.Fatal(err)
	}
	if out["diskless.ign"], err = Diskless(disklessInput(t)); err != nil {
		t.Fatal(err)
	}
	out["worker.grub.cfg"] = GrubCfg(worker(t))
	return out
}

func TestOutputsAreGolden(t *testing.T) {
	for name, b := range outputs(t) {
		golden(t, name, b)
	}
}

func TestOutputsAreTheSameEachTime(t *testing.T) {
	first := outputs(t)
	for range 5 {
		for name, b := range outputs(t) {
			if !bytes.Equal(b, first[name]) {
				t.Fatalf("%s differs between two runs", name)
			}
		}
	}
}

func TestIgnitionAcceptsWithoutAWord(t *testing.T) {
	for name, b := range outputs(t) {
		if !strings.HasSuffix(name, ".ign") {
			continue
		}
		_, rep, err := ignition.Parse(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, e := range rep.Entries {
			t.Errorf("%s: %s", name, e)
		}
	}
}

// decoded is an output with everything in it that a reader can unfold.
func decoded(t *testing.T, b []byte) string {
	t.Helper()
	text := string(b)
	var cfg types.Config
	if err := json.Unmarshal(b, &cfg); err != nil {
		return text
	}
	for _, f := range cfg.Storage.Files {
		if f.Contents.Source == nil || !strings.HasPrefix(*f.Contents.Source, "data:") {
			continue
		}
		u, err := dataurl.DecodeString(*f.Contents.Source)
		if err != nil {
			t.Fatal(err)
		}
		text += "\n" + string(u.Data)
	}
	return text
}

func TestNothingLooksLikeASecret(t *testing.T) {
	secret := regexp.MustCompile(`(?i)PRIVATE KEY|AGE-SECRET-KEY|password_?hash|ssh-(rsa|ed25519) |sshAuthorizedKeys|\btoken\b`)
	for name, b := range outputs(t) {
		if m := secret.FindString(decoded(t, b)); m != "" {
			t.Errorf("%s holds %q", name, m)
		}
	}
	if secret.FindString(decoded(t, []byte(`{"ignition":{"version":"3.4.0"},"storage":{"files":[{"path":"/a","contents":{"source":"data:,-----BEGIN%20PRIVATE%20KEY"}}]}}`))) == "" {
		t.Error("the search itself finds nothing")
	}
}

func TestInstallerRefusesNodeConfigurationThatCarriesAKey(t *testing.T) {
	in := installerInput(t)
	var conf nodeconf.Config
	if err := json.Unmarshal(in.NodeConfig, &conf); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	conf.CA += string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if in.NodeConfig, err = json.Marshal(conf); err != nil {
		t.Fatal(err)
	}
	if _, err := Installer(in); err == nil {
		t.Error("a private key was accepted")
	}
}

func TestInstallerIsForInstallersOnly(t *testing.T) {
	in := installerInput(t)
	in.NodeConfig = bytes.Replace(in.NodeConfig, []byte(`"installer"`), []byte(`"node"`), 1)
	_, err := Installer(in)
	if want := `rendering the installer's Ignition: node.json is for mode "node", want "installer"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestEveryDoorIsClosedInEveryIgnition(t *testing.T) {
	for name, b := range outputs(t) {
		if !strings.HasSuffix(name, ".ign") {
			continue
		}
		var cfg types.Config
		if err := json.Unmarshal(b, &cfg); err != nil {
			t.Fatal(err)
		}
		masked, links, files := map[string]bool{}, map[string]string{}, map[string]bool{}
		for _, u := range cfg.Systemd.Units {
			masked[u.Name] = u.Mask != nil && *u.Mask
		}
		for _, l := range cfg.Storage.Links {
			links[l.Path] = *l.Target
		}
		for _, f := range cfg.Storage.Files {
			files[f.Path] = true
		}
		for _, d := range lockdown.Doors() {
			for _, u := range d.Masks {
				if !masked[u] {
					t.Errorf("%s: door %s: %s is not masked", name, d.Name, u)
				}
			}
			for _, l := range d.Links {
				if links[l.Path] != l.Target {
					t.Errorf("%s: door %s: %s leads to %q", name, d.Name, l.Path, links[l.Path])
				}
			}
			for _, f := range d.Files {
				if !files[f.Path] {
					t.Errorf("%s: door %s: %s is missing", name, d.Name, f.Path)
				}
			}
		}
	}
}

func TestGrubCfgHasTheFormThatFlatcarUnderstands(t *testing.T) {
	// flatcar/bootengine dracut/30ignition/ignition-kargs-helper reads unindented lines of this form.
	line := regexp.MustCompile(`^set linux_append="[^"]*"\n$`)
	if got := GrubCfg(worker(t)); !line.Match(got) {
		t.Errorf("got %q", got)
	}
	if got, want := string(GrubCfg(plan.Role{})), "set linux_append=\"systemd.ssh_auto=no systemd.import_credentials=no\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
