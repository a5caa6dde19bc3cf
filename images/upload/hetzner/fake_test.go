package hetzner_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/ssh"
)

const token = "secret"

type object = map[string]any

// thing is a server, an image or an SSH key.
type thing struct {
	id    int64
	props object
	key   ssh.PublicKey // of an SSH key

	// Of a server.
	rescue []int64 // keys of the rescue system that starts next
	on     bool
	disk   []byte
}

// cloud stands in for Hetzner's API and for the rescue systems of its servers,
// after the API's documentation.
type cloud struct {
	*httptest.Server
	t *testing.T

	mu                    sync.Mutex
	last                  int64
	servers, images, keys []*thing
	// limit refuses servers; spoilt is a disk that forgets a byte; slow lets actions
	// run until they are asked for twice.
	limit, spoilt, slow bool
	asked               map[int64]int
	ssh                 net.Listener
	sessions            sync.WaitGroup
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{t: t, last: 1000, asked: map[int64]int{}}
	c.Server = httptest.NewServer(c)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.ssh = l
	c.sessions.Go(c.accept)
	t.Cleanup(func() {
		c.Close()
		l.Close()
		c.sessions.Wait()
	})
	return c
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, object{"error": object{"code": code, "message": message, "details": object{}}})
}

func (c *cloud) action() object {
	c.last++
	status := "success"
	if c.slow {
		status = "running"
	}
	return object{"id": c.last, "status": status, "progress": 100, "error": nil}
}

// ServeHTTP implements http.Handler.
func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+token {
		refuse(w, 401, "unauthorized", "unable to authenticate")
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	step := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if step[0] == "actions" {
		id, _ := strconv.ParseInt(step[1], 10, 64)
		c.asked[id]++
		status := "running"
		if c.asked[id] > 1 {
			status = "success"
		}
		answer(w, 200, object{"action": object{"id": id, "status": status}})
		return
	}
	all := map[string]*[]*thing{"servers": &c.servers, "images": &c.images, "ssh_keys": &c.keys}[step[0]]
	if all == nil {
		refuse(w, 404, "not_found", "no such path")
		return
	}
	if len(step) == 1 {
		if r.Method == http.MethodGet {
			c.list(w, r, step[0], *all)
		} else {
			c.create(w, r, step[0])
		}
		return
	}
	id, _ := strconv.ParseInt(step[1], 10, 64)
	n := slices.IndexFunc(*all, func(i *thing) bool { return i.id == id })
	if n < 0 {
		refuse(w, 404, "not_found", step[0]+" with ID '"+step[1]+"' not found")
		return
	}
	i, one := (*all)[n], strings.TrimSuffix(step[0], "s")
	switch {
	case r.Method == http.MethodDelete && i.protected():
		// The code decides, whatever the status says.
		refuse(w, 403, "protected", one+" is delete protected")
	case r.Method == http.MethodDelete:
		*all = slices.Delete(*all, n, n+1)
		if one == "server" {
			answer(w, 200, object{"action": c.action()})
			return
		}
		w.WriteHeader(204)
	case r.Method == http.MethodPut:
		var change object
		if err := json.NewDecoder(r.Body).Decode(&change); err != nil || !c.labels(w, change) {
			return
		}
		for k, v := range change {
			i.props[k] = v
		}
		answer(w, 200, object{one: i.props})
	case len(step) == 4:
		c.act(w, r, i, step[3])
	default:
		answer(w, 200, object{one: i.props})
	}
}

func (i *thing) protected() bool {
	p, _ := i.props["protection"].(object)
	return p["delete"] == true
}

// protect lets a snapshot be deleted no more, as its owner does at Hetzner.
func (c *cloud) protect(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.images {
		if strconv.FormatInt(i.id, 10) == id {
			i.props["protection"] = object{"delete": true}
			return nil
		}
	}
	return fmt.Errorf("there is no snapshot %s", id)
}

// pageSize is small, so that lists have several pages.
const pageSize = 2

func (c *cloud) list(w http.ResponseWriter, r *http.Request, what string, all []*thing) {
	q := r.URL.Query()
	hits := []object{}
	for _, i := range all {
		labels, _ := i.props["labels"].(object)
		hit := true
		for _, term := range strings.Split(q.Get("label_selector"), ",") {
			k, v, equal := strings.Cut(term, "==")
			hit = hit && equal && labels[k] == v
		}
		if hit {
			hits = append(hits, i.props)
		}
	}
	page, err := strconv.Atoi(q.Get("page"))
	if err != nil || page < 1 || what == "images" && q.Get("type") != "snapshot" {
		refuse(w, 400, "invalid_input", "page or type")
		return
	}
	var next any
	if len(hits) > page*pageSize {
		next = page + 1
	}
	from, to := min(len(hits), (page-1)*pageSize), min(len(hits), page*pageSize)
	answer(w, 200, object{what: hits[from:to], "meta": object{"pagination": object{"page": page, "next_page": next}}})
}

var labelForm = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)

// labels refuses those that Hetzner refuses.
func (c *cloud) labels(w http.ResponseWriter, props object) bool {
	labels, _ := props["labels"].(object)
	for k, v := range labels {
		if text, ok := v.(string); !ok || !labelForm.MatchString(k) || !labelForm.MatchString(text) {
			refuse(w, 400, "invalid_input", fmt.Sprintf("invalid label %s: %v", k, v))
			return false
		}
	}
	return true
}

func (c *cloud) create(w http.ResponseWriter, r *http.Request, what string) {
	var props object
	if err := json.NewDecoder(r.Body).Decode(&props); err != nil {
		refuse(w, 400, "json_error", err.Error())
		return
	}
	if !c.labels(w, props) {
		return
	}
	c.last++
	i := &thing{id: c.last, props: props}
	props["id"], props["created"] = c.last, time.Now().UTC().Format(time.RFC3339)
	same := func(o *thing) bool { return o.props["name"] == props["name"] }
	switch what {
	case "ssh_keys":
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(props["public_key"].(string)))
		if err != nil {
			refuse(w, 400, "invalid_input", err.Error())
			return
		}
		if i.key = key; slices.ContainsFunc(c.keys, same) {
			refuse(w, 409, "uniqueness_error", "SSH key not unique")
			return
		}
		c.keys = append(c.keys, i)
		answer(w, 201, object{"ssh_key": props})
	case "servers":
		switch {
		case c.limit:
			refuse(w, 403, "resource_limit_exceeded", "server limit exceeded")
			return
		case slices.ContainsFunc(c.servers, same):
			refuse(w, 409, "uniqueness_error", "server name is already used")
			return
		case props["start_after_create"] != false || props["image"] == "" || props["server_type"] != "cx23" || props["location"] != "fsn1":
			refuse(w, 422, "invalid_input", fmt.Sprint(props))
			return
		}
		props["status"], props["public_net"] = "off", object{"ipv4": object{"ip": "192.0.2.7"}}
		c.servers = append(c.servers, i)
		answer(w, 201, object{"server": props, "action": c.action(), "next_actions": []object{c.action()}})
	}
}

func (c *cloud) act(w http.ResponseWriter, r *http.Request, i *thing, name string) {
	var in struct {
		Type        string
		Keys        []int64 `json:"ssh_keys"`
		Description string
		Labels      object
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, 400, "json_error", err.Error())
		return
	}
	out := object{}
	switch name {
	case "enable_rescue":
		i.rescue = in.Keys
		out["root_password"] = "zCWbFhnu950dUTko5f40"
	case "poweron":
		i.on = true
	case "poweroff":
		i.on, i.rescue = false, nil
	case "create_image":
		if i.on || in.Type != "snapshot" || !c.labels(w, object{"labels": in.Labels}) {
			refuse(w, 422, "invalid_input", "the server runs, or this is no snapshot")
			return
		}
		c.last++
		s := &thing{id: c.last, disk: i.disk, props: object{
			"id": c.last, "type": "snapshot", "status": "available", "description": in.Description, "labels": in.Labels, "created": time.Now().UTC().Format(time.RFC3339),
		}}
		c.images = append(c.images, s)
		out["image"] = s.props
	default:
		refuse(w, 404, "not_found", name)
		return
	}
	out["action"] = c.action()
	answer(w, 201, out)
}

// dial connects to the rescue system of whichever server runs one.
func (c *cloud) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if address != "192.0.2.7:22" {
		return nil, fmt.Errorf("no route to %s", address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, c.ssh.Addr().String())
}

func (c *cloud) accept() {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		c.t.Error(err)
		return
	}
	host, err := ssh.NewSignerFromKey(private)
	if err != nil {
		c.t.Error(err)
		return
	}
	for {
		conn, err := c.ssh.Accept()
		if err != nil {
			return
		}
		c.sessions.Go(func() {
			defer conn.Close()
			c.session(conn, host)
		})
	}
}

// session lets a key in that a server's rescue system was started with, and runs
// one command.
func (c *cloud) session(conn net.Conn, host ssh.Signer) {
	var at *thing
	conf := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, k := range c.keys {
			for _, s := range c.servers {
				if s.on && slices.Contains(s.rescue, k.id) && bytes.Equal(k.key.Marshal(), key.Marshal()) {
					at = s
					return nil, nil
				}
			}
		}
		return nil, fmt.Errorf("no rescue system has this key")
	}}
	conf.AddHostKey(host)
	_, channels, requests, err := ssh.NewServerConn(conn, conf)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		ch, asks, err := offered.Accept()
		if err != nil {
			return
		}
		for ask := range asks {
			if ask.Type != "exec" {
				_ = ask.Reply(false, nil)
				continue
			}
			_ = ask.Reply(true, nil)
			status := c.run(at, string(ask.Payload[4:]), ch)
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ N uint32 }{status}))
			ch.Close()
		}
	}
}

// run does what the rescue system's shell would do.
func (c *cloud) run(at *thing, command string, ch ssh.Channel) uint32 {
	want := regexp.MustCompile(`^bash -c 'set -euo pipefail; blkdiscard /dev/sda; zstd -dc \| dd of=/dev/sda .*; head -c (\d+) /dev/sda \| if command -v openssl >/dev/null; then openssl dgst -sha256 -r; else sha256sum; fi'$`)
	m := want.FindStringSubmatch(command)
	if m == nil {
		fmt.Fprintf(ch.Stderr(), "bash: %s: not understood", command)
		return 127
	}
	size, _ := strconv.Atoi(m[1])
	z, err := zstd.NewReader(ch)
	if err != nil {
		return 1
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		fmt.Fprintf(ch.Stderr(), "zstd: %v", err)
		return 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spoilt {
		b[len(b)/2]++
	}
	at.disk = b
	sum := sha256.Sum256(b[:min(len(b), size)])
	fmt.Fprintf(ch, "%s  -\n", hex.EncodeToString(sum[:]))
	return 0
}

// plant makes things of somebody else.
func (c *cloud) plant() func() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images = append(c.images, &thing{id: 1, props: object{"id": 1, "type": "snapshot", "status": "available", "description": "prod-worker", "labels": object{"imagectl": "1"}}})
	c.servers = append(c.servers, &thing{id: 2, props: object{"id": 2, "name": "db1", "labels": object{}}})
	c.keys = append(c.keys, &thing{id: 3, props: object{"id": 3, "name": "me", "labels": object{}}})
	shown := func() string {
		b, _ := json.Marshal([]object{c.images[0].props, c.servers[0].props, c.keys[0].props})
		return string(b)
	}
	before := shown()
	return func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.images) < 1 || len(c.servers) < 1 || len(c.keys) < 1 || shown() != before {
			return fmt.Errorf("what belongs to others has changed")
		}
		return nil
	}
}
