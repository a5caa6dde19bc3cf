package nodeconf

import (
	"strings"
	"testing"
)

// A token never goes where node.json is public.
func TestAnInstallerTakesNoToken(t *testing.T) {
	t.Parallel()
	c := Config{Cluster: "lab", Mode: Installer, Servers: []string{"https://127.0.0.1:8443"}, Token: "w1.x"}
	const want = "encoding node configuration: a token is for a machine that its platform tells of its server; an installer fetches this file over plain HTTP"
	if _, err := c.Encode(); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	text := `{"cluster":"lab","mode":"installer","servers":["https://127.0.0.1:8443"],"ca":"","token":"w1.x"}`
	if _, err := Parse([]byte(text)); err == nil || !strings.HasSuffix(err.Error(), strings.TrimPrefix(want, "encoding node configuration")) {
		t.Errorf("got %v", err)
	}
}
