package agent

import (
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// A node on five slow machines was seen to join with a certificate that had ended three minutes
// before, and to begin from the start again and again.
func TestTheCertificateToJoinOutlivesKubeadmsPatience(t *testing.T) {
	if life := (pki.Lifetimes{}).WithDefaults().Join; life < kubeadm.DiscoveryUse+5*time.Minute {
		t.Errorf("it lives for %s, and kubeadm may use it for %s", life, kubeadm.DiscoveryUse)
	}
}
