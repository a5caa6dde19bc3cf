package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

const (
	// encryptionLoadedPath has the digest of the keys' file that the API server is known to
	// have loaded.
	encryptionLoadedPath = StateDir + "/encryption.loaded"
	// encryptionRewrittenPath has the name of the key under which this node has written all
	// Secrets anew.
	encryptionRewrittenPath = StateDir + "/encryption.rewritten"
)

// policyOf is what the API server of this control plane is to run with; false on clusters that
// were made before there was such a thing.
func policyOf(run *api.Run) (kubeadm.Policy, bool) {
	p := run.GetKubernetes().GetPolicy()
	if p == nil || !run.GetControlPlane() {
		return kubeadm.Policy{}, false
	}
	return kubeadm.Policy{Enforce: p.GetEnforce(), Audit: p.GetAudit(), Warn: p.GetWarn(), Exempt: p.GetExempt()}, true
}

// encryptionKeys keeps the file of the keys for Secrets at rest. API servers read it again
// within a minute.
func (n *node) encryptionKeys(run *api.Run) Step {
	want := run.GetKubernetes().GetEncryptionKeys()
	return Step{
		Name: "encryption-keys",
		Observe: func(context.Context) (bool, string, error) {
			b, err := n.Host.ReadFile(kubeadm.EncryptionPath)
			if notExist(err) {
				return false, kubeadm.EncryptionPath + " is missing", nil
			} else if err != nil {
				return false, "", err
			}
			have, err := kubeadm.EncryptionKeyNames(b)
			if err != nil {
				return false, "it cannot be read", nil
			}
			if slices.Equal(have, want) {
				return true, "", nil
			}
			// The first is what Secrets are encrypted with: without it none can be read.
			if len(have) > 0 && !slices.Contains(want, have[0]) && have[0] != kubeadm.PlainKey {
				return false, "", fmt.Errorf("Secrets are encrypted with key %s here, and the server says %s: it was restored from a backup that is older than that key; restore a newer one", have[0], strings.Join(want, ", "))
			}
			return false, fmt.Sprintf("it has the keys %s instead of %s", strings.Join(have, ", "), strings.Join(want, ", ")), nil
		},
		Act: func(ctx context.Context) error {
			resp, err := n.servers.current().agent.FetchKubernetesSecrets(ctx, connect.NewRequest(&api.FetchKubernetesSecretsRequest{Encryption: true}))
			if err != nil {
				return fmt.Errorf("fetching the keys for Secrets: %w", err)
			}
			var keys []kubeadm.EncryptionKey
			var names []string
			for _, k := range resp.Msg.GetEncryptionKeys() {
				keys, names = append(keys, kubeadm.EncryptionKey{Name: k.GetName(), Secret: k.GetSecret()}), append(names, k.GetName())
			}
			if !slices.Equal(names, want) {
				return waiting("the server has other keys for Secrets by now than it said; it says so next")
			}
			b, err := kubeadm.Encryption(keys)
			if err != nil {
				return err
			}
			return n.write(file{kubeadm.EncryptionPath, b, 0o600})
		},
	}
}

// policyFiles keeps the files that the API server's policy needs, and what makes kubeadm write
// its manifest with them.
func (n *node) policyFiles(run *api.Run) Step {
	files := func() ([]file, error) {
		policy, _ := n.policyOf(run) // what a step before this one has written counts
		all, err := policy.Files()
		if err != nil {
			return nil, err
		}
		patches, err := policy.Patches()
		if err != nil {
			return nil, err
		}
		var out []file
		for _, f := range append(all, patches...) {
			out = append(out, file{f.Path, f.Content, 0o600})
		}
		return out, nil
	}
	return Step{
		Name: "api-server-policy",
		Observe: func(context.Context) (bool, string, error) {
			want, err := files()
			if err != nil {
				return false, "", err
			}
			missing, err := n.wrong(want)
			return missing == "" && err == nil, missing, err
		},
		Act: func(context.Context) error {
			want, err := files()
			if err != nil {
				return err
			}
			for _, f := range want {
				if err := n.write(f); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// apiServerOutdated says whether the API server's manifest lacks what its policy asks for.
func (n *node) apiServerOutdated(policy kubeadm.Policy) (bool, error) {
	have, err := n.Host.ReadFile(kubeadm.APIServerManifest)
	if err != nil {
		return false, err
	}
	want, err := policy.Apply(have)
	return err == nil && !bytes.Equal(have, want), err
}

// policyInUse writes the API server's manifest with the policy of now, when it is this node's
// turn; controlPlaneRestarted waits for the rest.
func (n *node) policyInUse(run *api.Run) Step {
	return Step{
		Name: "api-server-policy-in-use",
		Observe: func(context.Context) (bool, string, error) {
			policy, _ := n.policyOf(run)
			outdated, err := n.apiServerOutdated(policy)
			return !outdated && err == nil, "the API server runs with an older policy", err
		},
		Act: func(context.Context) error {
			have, err := n.Host.ReadFile(kubeadm.APIServerManifest)
			if err != nil {
				return err
			}
			policy, _ := n.policyOf(run)
			want, err := policy.Apply(have)
			if err != nil {
				return err
			}
			mode, err := n.Host.Mode(kubeadm.APIServerManifest)
			if err != nil {
				return err
			}
			if err := n.noteRenewing(); err != nil {
				return err
			}
			return n.write(file{kubeadm.APIServerManifest, want, uint32(mode)})
		},
	}
}

// noteEncryption remembers that the API server has loaded a file of keys.
func (n *node) noteEncryption(digest string) error {
	return n.write(file{encryptionLoadedPath, []byte(digest + "\n"), 0o600})
}

// encryptionDigest is that of the keys' file now, as API servers write it; empty for none.
func (n *node) encryptionDigest() (string, []byte) {
	b, err := n.Host.ReadFile(kubeadm.EncryptionPath)
	if err != nil {
		return "", nil
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), b
}

// encryptionLoaded returns the names of the keys that the API server has loaded; nil while it
// is not known to have loaded the file as it is now. It is asked while that is so only: the
// answer is a megabyte.
func (n *node) encryptionLoaded(ctx context.Context, run *api.Run) []string {
	now, content := n.encryptionDigest()
	if now == "" {
		return nil
	}
	loaded, err := n.Host.ReadFile(encryptionLoadedPath)
	if err != nil && !notExist(err) {
		return nil
	}
	if strings.TrimSpace(string(loaded)) != now {
		got, err := n.askEncryption(ctx, apiServerAddress(run)) // past the balancer
		if err != nil || got != now {
			n.Log.Debug("the API server has not loaded the keys for Secrets yet", "err", err)
			return nil
		}
		if err := n.noteEncryption(now); err != nil {
			n.Log.Error("noting that the API server has loaded the keys for Secrets", "err", err)
			return nil
		}
	}
	names, err := kubeadm.EncryptionKeyNames(content)
	if err != nil {
		return nil
	}
	return names
}

// loadedRE finds the digest of the keys' file that an API server has loaded (Kubernetes 1.34 to
// 1.36: apiserver/pkg/server/options/encryptionconfig/metrics).
var loadedRE = regexp.MustCompile(`(?m)^apiserver_encryption_config_controller_last_config_info\{[^}]*\bhash="(sha256:[0-9a-f]{64})"`)

// metricsMax bounds an API server's metrics, in bytes: some megabytes on a large cluster.
const metricsMax = 64 << 20

// getEncryption asks an API server which file of keys it has loaded.
func (a *Agent) getEncryption(ctx context.Context, address string) (string, error) {
	k, err := a.kubeClient(kubeadm.AdminConf)
	if err != nil {
		return "", err
	}
	at := "https://" + address + "/metrics"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return "", err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, metricsMax))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", at, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("asking %s: %s", at, resp.Status)
	}
	found := loadedRE.FindSubmatch(b)
	if found == nil {
		return "", fmt.Errorf("asking %s: it does not say which keys for Secrets it has loaded", at)
	}
	return string(found[1]), nil
}

// secretsRewritten has every Secret written anew, so that it is encrypted with the first key.
// What was done twice does no harm: an API server writes what would not change only when it was
// encrypted with another key.
func (n *node) secretsRewritten(run *api.Run) Step {
	key := run.GetKubernetes().GetEncryptionKeys()[0]
	return Step{
		Name: "secrets-rewritten",
		Observe: func(context.Context) (bool, string, error) {
			have, err := n.Host.ReadFile(encryptionRewrittenPath)
			if notExist(err) {
				err = nil
			}
			return strings.TrimSpace(string(have)) == key, "Secrets may be encrypted with the key before " + key, err
		},
		Act: func(ctx context.Context) error {
			count, err := n.rewriteSecrets(ctx)
			if err != nil {
				return fmt.Errorf("writing Secrets anew, %d of them done: %w", count, err)
			}
			n.Log.Info("wrote all Secrets anew", "key", key, "secrets", count)
			return n.write(file{encryptionRewrittenPath, []byte(key + "\n"), 0o600})
		},
	}
}

// partial is the head of an object, which is all that the agent is to see of a Secret.
type partial struct {
	Metadata struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
}

type partialList struct {
	Metadata struct {
		Continue string `json:"continue"`
	} `json:"metadata"`
	Items []partial `json:"items"`
}

const (
	// onlyHeads has API servers answer without what is in the objects.
	onlyHeads     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	onlyHeadsList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	// secretsPage is how many Secrets are listed at a time.
	secretsPage = 500
	// rewriteTries is how often one Secret is tried that somebody else changes meanwhile.
	rewriteTries = 5
)

// patchSecrets changes nothing of any Secret, and so has each of them written anew. It returns
// how many were.
func (a *Agent) patchSecrets(ctx context.Context) (int, error) {
	count, from := 0, ""
	for {
		path := fmt.Sprintf("/api/v1/secrets?limit=%d", secretsPage)
		if from != "" {
			path += "&continue=" + url.QueryEscape(from)
		}
		list := kubeCall{as: kubeadm.AdminConf, method: http.MethodGet, path: path, accept: onlyHeadsList}
		b, status, err := a.callKubernetes(ctx, list)
		if err == nil && status != http.StatusOK {
			err = list.refused(status, b)
		}
		if err != nil {
			return count, err
		}
		var page partialList
		if err := json.Unmarshal(b, &page); err != nil {
			return count, fmt.Errorf("reading the list of Secrets: %w", err)
		}
		for _, s := range page.Items {
			if err := a.touchSecret(ctx, s); err != nil {
				return count, err
			}
			count++
		}
		if from = page.Metadata.Continue; from == "" {
			return count, nil
		}
	}
}

func (a *Agent) touchSecret(ctx context.Context, s partial) error {
	path := "/api/v1/namespaces/" + url.PathEscape(s.Metadata.Namespace) + "/secrets/" + url.PathEscape(s.Metadata.Name)
	touch := kubeCall{as: kubeadm.AdminConf, method: http.MethodPatch, path: path, accept: onlyHeads, contentType: mergePatch, body: []byte("{}")}
	for try := 1; ; try++ {
		b, status, err := a.callKubernetes(ctx, touch)
		switch {
		case err != nil:
			return err
		case status == http.StatusOK, status == http.StatusNotFound:
			return nil
		case status == http.StatusConflict && try < rewriteTries:
			// Whoever changed it wrote it with the new key; but it is as cheap to look.
		default:
			return touch.refused(status, b)
		}
	}
}
