//go:build root

package native

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// How long an etcd that died is away decides whether balancers see it.
func TestEtcdIsStartedAgainWhenItsUnitSays(t *testing.T) {
	text, err := os.ReadFile("../../images/sysext/units/etcd.service")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("\nRestartSec=%.0f\n", etcdRestart.Seconds()); !strings.Contains(string(text), want) {
		t.Errorf("etcd.service has no %q:\n%s", want, text)
	}
}
