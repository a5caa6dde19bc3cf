package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
)

func TestBMCsAreCheckedBeforeAnythingIsServed(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"password": "s3cret\n", "empty": "\n", "sealed": "sealed", "ca.pem": "none"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("IMAGECTL_TEST_BMC", strings.Repeat("x", 21))
	unseal := func(b []byte) ([]byte, error) {
		if string(b) != "sealed" {
			return nil, errors.New("not for us")
		}
		return []byte("s3cret"), nil
	}
	g := &globals{file: filepath.Join(dir, "cluster.yaml")}
	pin := strings.Repeat("ab", 32)
	for name, tc := range map[string]struct {
		bmc  cluster.BMC
		want string // behind "reading the BMC of machine w1: "
	}{
		"a file":        {bmc: cluster.BMC{Kind: "redfish", Address: "10.9.0.1", Password: cluster.Secret{File: "password"}, Pin: pin}},
		"sealed":        {bmc: cluster.BMC{Kind: "ipmi", Address: "10.9.0.1", Password: cluster.Secret{Age: "sealed"}}},
		"not sealed":    {bmc: cluster.BMC{Kind: "ipmi", Password: cluster.Secret{Age: "password"}}, want: "password: not for us; encrypt it to the public key in the state directory's identity.age"},
		"no file":       {bmc: cluster.BMC{Kind: "ipmi", Password: cluster.Secret{File: "gone"}}, want: "open " + dir + "/gone: no such file or directory"},
		"no variable":   {bmc: cluster.BMC{Kind: "ipmi", Password: cluster.Secret{Env: "IMAGECTL_TEST_NONE"}}, want: "the environment of imagectl serve has no IMAGECTL_TEST_NONE"},
		"nothing in it": {bmc: cluster.BMC{Kind: "ipmi", Password: cluster.Secret{File: "empty"}}, want: "its password is empty"},
		"too long":      {bmc: cluster.BMC{Kind: "ipmi", Password: cluster.Secret{Env: "IMAGECTL_TEST_BMC"}}, want: "its password has 21 characters, and IPMI takes at most 20"},
		"no authority":  {bmc: cluster.BMC{Kind: "redfish", Password: cluster.Secret{File: "password"}, CA: "ca.pem"}, want: "trusting a BMC: the file of bmc.tls.ca holds no certificate"},
	} {
		b, err := g.loadBMCs(plan.Plan{Machines: []plan.Machine{{Name: "cp1"}, {Name: "w1", BMC: &tc.bmc}}}, "", unseal)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want == "":
			if got, ok := b.Names("w1"); !ok || got != tc.bmc.Kind+" 10.9.0.1" {
				t.Errorf("%s: got %q, %v", name, got, ok)
			}
			if _, ok := b.Names("cp1"); ok {
				t.Errorf("%s: cp1 has a BMC", name)
			}
		case err == nil || err.Error() != "reading the BMC of machine w1: "+tc.want:
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
	if b, err := g.loadBMCs(plan.Plan{Machines: []plan.Machine{{Name: "cp1"}}}, "", unseal); b != nil || err != nil {
		t.Errorf("no BMC: got %v, %v", b, err)
	}
}
