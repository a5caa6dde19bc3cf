package cli

import (
	"strings"
	"testing"

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
