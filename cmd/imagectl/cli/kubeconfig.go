package cli

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func newKubeconfig(g *globals) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Write a kubeconfig with a client certificate that lives for hours",
		Long: "Write a kubeconfig with a client certificate that lives for hours. The key is made\n" +
			"here and never leaves this machine.",
		Example: "  imagectl kubeconfig --out kubeconfig && kubectl --kubeconfig kubeconfig get nodes",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			key, err := pki.NewKey(rand.Reader)
			if err != nil {
				return fmt.Errorf("making a key: %w", err)
			}
			csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
			if err != nil {
				return fmt.Errorf("making a certificate request: %w", err)
			}
			keyPEM, err := pki.EncodeKey(key)
			if err != nil {
				return err
			}
			resp, err := r.operator().IssueKubeconfig(cmd.Context(), connect.NewRequest(&api.IssueKubeconfigRequest{CsrDer: csr}))
			if err != nil {
				return r.explain(err)
			}
			text, err := kubeconfig(resp.Msg, keyPEM)
			if err != nil {
				return err
			}
			if out == "" || out == "-" {
				_, err := g.stdio.Out.Write(text)
				return err
			}
			if err := writePrivate(out, text); err != nil {
				return fmt.Errorf("writing kubeconfig %s: %w", out, err)
			}
			leaf, err := pki.ParseCertificatePEM([]byte(resp.Msg.GetCertificatePem()))
			if err != nil {
				return err
			}
			fmt.Fprintf(g.stdio.Err, "%s: good until %s; next: kubectl --kubeconfig %s get nodes\n", out, leaf.NotAfter.Local().Format(time.DateTime), out)
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write (default standard output)")
	return cmd
}

// kubeconfig words clientcmd's v1 Config.
func kubeconfig(a *api.IssueKubeconfigResponse, key []byte) ([]byte, error) {
	type m = map[string]any
	b64 := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	user := "imagectl@" + a.GetCluster()
	b, err := yaml.Marshal(m{
		"apiVersion": "v1", "kind": "Config", "current-context": a.GetCluster(), "preferences": m{},
		"clusters": []m{{"name": a.GetCluster(), "cluster": m{"server": a.GetServer(), "certificate-authority-data": b64([]byte(a.GetCaPem()))}}},
		"users":    []m{{"name": user, "user": m{"client-certificate-data": b64([]byte(a.GetCertificatePem())), "client-key-data": b64(key)}}},
		"contexts": []m{{"name": a.GetCluster(), "context": m{"cluster": a.GetCluster(), "user": user}}},
	})
	if err != nil {
		return nil, fmt.Errorf("writing kubeconfig: %w", err)
	}
	return b, nil
}
