//go:build root

package native

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/yaml"
)

const (
	kubeletConf   = "/etc/kubernetes/kubelet.conf"
	bootstrapConf = "/etc/kubernetes/bootstrap-kubelet.conf"
	clientPEM     = "/var/lib/kubelet/pki/kubelet-client-current.pem"
)

// kubelet stands for the real one: static pods as processes, health, the
// exchange of a bootstrap certificate for one of its own, and the Node object.
func kubelet(s spec, stop <-chan struct{}) {
	health := &http.Server{Addr: "127.0.0.1:10248", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })}
	go func() { _ = health.ListenAndServe() }()
	defer health.Close()
	log, err := os.OpenFile(filepath.Join(s.Dir, "kubelet.service.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer log.Close()
	type pod struct {
		manifest []byte
		cmd      *exec.Cmd
		ended    chan struct{}
	}
	pods := make(map[string]*pod)
	halt := func(p *pod) {
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	defer func() {
		// A real kubelet leaves its pods running. These are its children, and init
		// cannot adopt them.
		for _, p := range pods {
			halt(p)
		}
	}()
	// An API that does not answer keeps no static pod from its start: it may be one of them.
	var node sync.WaitGroup
	node.Go(func() { present(s.Name, log, stop) })
	defer node.Wait()
	for {
		manifests, err := filepath.Glob("/etc/kubernetes/manifests/*.yaml")
		if err != nil {
			fmt.Fprintln(log, err)
		}
		written := make(map[string]bool)
		for _, name := range manifests {
			written[name] = true
			text, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			p := pods[name]
			if p != nil && bytes.Equal(p.manifest, text) {
				select {
				case <-p.ended:
				default:
					continue
				}
			} else if p != nil {
				halt(p)
			}
			argv, err := command(text)
			if err != nil {
				fmt.Fprintln(log, name, err)
				continue
			}
			out, err := os.OpenFile(filepath.Join(s.Dir, filepath.Base(argv[0])+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				continue
			}
			p = &pod{manifest: text, cmd: program(argv), ended: make(chan struct{})}
			p.cmd.Stdout, p.cmd.Stderr = out, out
			if err := p.cmd.Start(); err != nil {
				fmt.Fprintln(log, name, err)
				continue
			}
			go func() {
				defer out.Close()
				_ = p.cmd.Wait()
				close(p.ended)
			}()
			pods[name] = p
		}
		for name, p := range pods {
			if !written[name] {
				halt(p)
				delete(pods, name)
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
	}
}

// present keeps the node known to the API, and Ready.
func present(name string, log io.Writer, stop <-chan struct{}) {
	var said time.Time
	registered, mirrored := false, false
	for {
		if time.Since(said) >= heartbeat {
			if err := register(name, &registered); err != nil {
				fmt.Fprintln(log, "registering:", err)
			} else if registered {
				said = time.Now()
			}
		}
		if manifest, err := os.ReadFile(etcdManifest); err == nil && registered && !mirrored {
			if err := mirror(name, manifest); err != nil {
				fmt.Fprintln(log, "mirroring etcd's pod:", err)
			} else {
				mirrored = true
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
	}
}

// command is what a static pod's only container runs.
func command(manifest []byte) ([]string, error) {
	var p struct {
		Spec struct {
			Containers []struct {
				Command []string `json:"command"`
			} `json:"containers"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(manifest, &p); err != nil {
		return nil, err
	}
	if len(p.Spec.Containers) != 1 || len(p.Spec.Containers[0].Command) == 0 {
		return nil, errors.New("a static pod has one container with a command")
	}
	return p.Spec.Containers[0].Command, nil
}

// heartbeat is how often kubelet says that it is well (nodeStatusUpdateFrequency's default).
const heartbeat = 10 * time.Second

// register makes the Node object, as kubelet does once in its process' life, and says that it
// is Ready.
func register(name string, registered *bool) error {
	if _, err := os.Stat(kubeletConf); err != nil {
		if _, err := os.Stat(bootstrapConf); err != nil {
			return nil
		}
		if err := exchange(name, bootstrapConf); err != nil {
			return err
		}
	} else if late, err := lateInLife(); err != nil {
		return err
	} else if late {
		if err := exchange(name, kubeletConf); err != nil {
			return err
		}
	}
	if _, err := kubectl(kubeletConf, "", "get", "node", name); err != nil {
		if *registered {
			return err
		}
		node := fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q,"labels":{"kubernetes.io/hostname":%q}}}`, name, name)
		if _, err := kubectl(kubeletConf, node, "create", "--validate=false", "-f", "-"); err != nil {
			return err
		}
	}
	*registered = true
	text, err := kubectl(kubeletConf, "", "get", "node", name, "-o", "json")
	if err != nil {
		return err
	}
	var node map[string]any
	if err := json.Unmarshal(text, &node); err != nil {
		return err
	}
	now := time.Now().UTC().Format(time.RFC3339)
	status, _ := node["status"].(map[string]any)
	if status == nil {
		status = map[string]any{}
		node["status"] = status
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	info, _ := status["nodeInfo"].(map[string]any)
	if info == nil {
		info = map[string]any{}
	}
	info["bootID"] = strings.TrimSpace(string(boot))
	status["nodeInfo"] = info
	status["conditions"] = []any{map[string]any{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status", "lastHeartbeatTime": now, "lastTransitionTime": now}}
	if text, err = json.Marshal(node); err != nil {
		return err
	}
	_, err = kubectl(kubeletConf, string(text), "replace", "--raw", "/api/v1/nodes/"+name+"/status", "-f", "-")
	return err
}

// lateInLife says whether four fifths of the life of kubelet's certificate are over: from there
// on it wants another one (rotateCertificates; it chooses between 0.7 and 0.9). One that the
// server signs does not come so far, for the agent renews it.
func lateInLife() (bool, error) {
	_, user, err := clientOf(kubeletConf)
	if err != nil {
		return false, err
	}
	// kubeadm init writes the first one into the file.
	text, err := base64.StdEncoding.DecodeString(fmt.Sprint(user["client-certificate-data"]))
	if path, ok := user["client-certificate"].(string); ok {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return false, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return false, fmt.Errorf("%s leads to no certificate", kubeletConf)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false, err
	}
	return time.Now().After(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 5 * 4)), nil
}

// clientOf reads a kubeconfig, whose only user's "user" is client.
func clientOf(conf string) (file, client map[string]any, err error) {
	text, err := os.ReadFile(conf)
	if err != nil {
		return nil, nil, err
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, nil, err
	}
	if users, _ := file["users"].([]any); len(users) == 1 {
		if user, _ := users[0].(map[string]any); user != nil {
			if client, _ = user["user"].(map[string]any); client != nil {
				return file, client, nil
			}
		}
	}
	return nil, nil, fmt.Errorf("%s has not one user", conf)
}

// exchange is kubelet's TLS bootstrap, by the bootstrap certificate, and its renewal, by its own.
func exchange(name, conf string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}}, key)
	if err != nil {
		return err
	}
	csrPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	id := fmt.Sprintf("csr-%s-%d", name, time.Now().UnixNano())
	object := fmt.Sprintf(`{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{"name":%q},"spec":{"request":%q,"signerName":"kubernetes.io/kube-apiserver-client-kubelet","usages":["digital signature","client auth"]}}`,
		id, base64.StdEncoding.EncodeToString(csrPEM))
	if _, err := kubectl(conf, object, "create", "--validate=false", "-f", "-"); err != nil {
		return err
	}
	var cert []byte
	for range 60 {
		out, err := kubectl(conf, "", "get", "csr", id, "-o", "jsonpath={.status.certificate}")
		if err == nil && len(out) > 0 {
			if cert, err = base64.StdEncoding.DecodeString(string(out)); err != nil {
				return err
			}
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	if cert == nil {
		return fmt.Errorf("%s was not approved", id)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(clientPEM), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(clientPEM, append(cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...), 0o600); err != nil {
		return err
	}
	file, client, err := clientOf(conf)
	if err != nil {
		return err
	}
	clear(client)
	client["client-certificate"], client["client-key"] = clientPEM, clientPEM
	text, err := yaml.Marshal(file)
	if err != nil {
		return err
	}
	return os.WriteFile(kubeletConf, text, 0o600)
}

func kubectl(conf, stdin string, args ...string) ([]byte, error) {
	cmd := program(append([]string{"kubectl", "--kubeconfig", conf, "--request-timeout", "10s"}, args...))
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return out, err
}
