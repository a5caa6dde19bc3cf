package proxmoxtest

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

func (s *Server) resources() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []map[string]any{}
	for id, m := range s.machines {
		e := map[string]any{"id": "qemu/" + strconv.Itoa(id), "type": "qemu", "vmid": id, "node": Node, "status": "stopped", "template": 0}
		if m.template {
			e["template"] = 1
		}
		if m.config["tags"] != "" {
			e["tags"] = m.config["tags"]
		}
		out = append(out, e)
	}
	return out
}

// dnsName is JSONSchema's dns-name.
var dnsName = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?\.)*([a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)$`)

// create answers at once; until the task ends nothing but a lock is in the
// configuration, and if it fails the machine is gone again.
func (s *Server) create(r *http.Request) (any, *refusal) {
	if err := r.ParseForm(); err != nil {
		return nil, no(http.StatusBadRequest, "%v", err)
	}
	id, err := strconv.Atoi(r.PostForm.Get("vmid"))
	switch {
	case err != nil || id < 100:
		return nil, wrong("vmid", "invalid format - value does not look like a valid VM ID")
	case !dnsName.MatchString(r.PostForm.Get("name")):
		return nil, wrong("name", "invalid format - value does not look like a valid DNS name")
	case r.PostForm.Has("args"):
		return nil, no(http.StatusInternalServerError, "only root can set 'args' config")
	}
	from := regexp.MustCompile(`,import-from=([^,]+)`).FindStringSubmatch(r.PostForm.Get("scsi0"))
	if !strings.HasPrefix(r.PostForm.Get("scsi0"), Datastore+":0,") || from == nil {
		return nil, wrong("scsi0", "invalid format - format error")
	}
	file, is := strings.CutPrefix(from[1], Import+":import/")
	if !is {
		return nil, no(http.StatusForbidden, "%s: cannot import from device path or this content", from[1])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machines[id] != nil {
		return nil, no(http.StatusInternalServerError, "unable to create VM %d - VM %d already exists on node '%s'\n", id, id, Node)
	}
	m := &machine{config: map[string]string{}, lock: "create"}
	s.machines[id] = m
	config := map[string]string{}
	for k := range r.PostForm {
		if k != "vmid" {
			config[k] = r.PostForm.Get(k)
		}
	}
	hold := s.hold
	return s.fork("qmcreate", strconv.Itoa(id), func(k *task) error {
		err := s.fillDisk(k, m, id, file, config, hold)
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.machines, id)
		}
		return err
	}), nil
}

func (s *Server) fillDisk(k *task, m *machine, id int, file string, config map[string]string, hold chan struct{}) error {
	if hold != nil {
		select {
		case <-hold:
		case <-k.stopped:
			return errStopped
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	content, is := s.files[file]
	if !is {
		return fmt.Errorf("unable to create VM %d - cannot import from '%s:import/%s' - volume does not exist", id, Import, file)
	}
	m.disk, m.config, m.lock = content, config, ""
	size := int64(len(content))
	if strings.HasSuffix(file, ".qcow2") {
		size = int64(binary.BigEndian.Uint64(content[24:]))
	}
	m.config["scsi0"] = fmt.Sprintf("%s:vm-%d-disk-0,discard=on,size=%dK", Datastore, id, (size+1023)/1024)
	k.log = append(k.log, fmt.Sprintf("scsi0: successfully created disk '%s'", m.config["scsi0"]))
	return nil
}

func (s *Server) serveMachine(r *http.Request, id, what string) (any, *refusal) {
	if err := r.ParseForm(); err != nil {
		return nil, no(http.StatusBadRequest, "%v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machine(id)
	if m == nil {
		return nil, no(http.StatusInternalServerError, "Configuration file 'nodes/%s/qemu-server/%s.conf' does not exist\n", Node, id)
	}
	switch r.Method + " " + what {
	case "GET config":
		out := map[string]any{"digest": m.digest()}
		for k, v := range m.config {
			out[k] = v
		}
		if m.lock != "" {
			out["lock"] = m.lock
		}
		if m.template {
			out["template"] = 1
		}
		return out, nil
	case "PUT config":
		return nil, s.change(m, r)
	case "POST template":
		return s.makeTemplate(m, id)
	case "DELETE ":
		return s.destroy(m, id)
	}
	return nil, no(http.StatusNotImplemented, "Method not implemented")
}

func (m *machine) digest() string { return fmt.Sprintf("%040x", m.changes) }

// hasMedium tells whether a CD drive names an ISO image that is there.
func (s *Server) hasMedium(drive string) bool {
	volume, _, _ := strings.Cut(drive, ",")
	name, is := strings.CutPrefix(volume, Import+":iso/")
	_, has := s.files[name]
	return is && has
}

func (s *Server) change(m *machine, r *http.Request) *refusal {
	switch d := r.PostForm.Get("digest"); {
	case m.lock != "":
		return no(http.StatusInternalServerError, "VM is locked (%s)\n", m.lock)
	case d != "" && d != m.digest():
		return no(http.StatusInternalServerError, "detected modified configuration - file changed by other user? Try again.\n")
	case r.PostForm.Has("ide2") && !s.hasMedium(r.PostForm.Get("ide2")):
		return no(http.StatusInternalServerError, "volume '%s' does not exist\n", r.PostForm.Get("ide2"))
	case r.PostForm.Has("name") && !dnsName.MatchString(r.PostForm.Get("name")):
		return wrong("name", "invalid format - value does not look like a valid DNS name")
	case r.PostForm.Has("args"):
		return no(http.StatusInternalServerError, "only root can set 'args' config")
	}
	for _, k := range strings.FieldsFunc(r.PostForm.Get("delete"), func(r rune) bool { return r == ',' }) {
		if r.PostForm.Has(k) || m.config[k] == "" {
			return wrong("delete", "unable to delete '"+k+"'")
		}
		delete(m.config, k)
	}
	for k := range r.PostForm {
		if k != "digest" && k != "delete" {
			m.config[k] = r.PostForm.Get(k)
		}
	}
	m.changes++
	return nil
}

func (s *Server) makeTemplate(m *machine, id string) (any, *refusal) {
	check := func() error {
		switch {
		case m.lock != "":
			return fmt.Errorf("VM is locked (%s)", m.lock)
		case m.template:
			return fmt.Errorf("you can't convert a template to a template")
		}
		return nil
	}
	if err := check(); err != nil {
		return nil, no(http.StatusInternalServerError, "%v\n", err)
	}
	return s.fork("qmtemplate", id, func(*task) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.machine(id) != m {
			return fmt.Errorf("Configuration file 'nodes/%s/qemu-server/%s.conf' does not exist", Node, id) //nolint:staticcheck // Proxmox VE's words.
		}
		if err := check(); err != nil {
			return err
		}
		m.template, m.changes = true, m.changes+1
		m.config["scsi0"] = strings.Replace(m.config["scsi0"], ":vm-", ":base-", 1)
		return nil
	}), nil
}

func (s *Server) destroy(m *machine, id string) (any, *refusal) {
	if m.lock != "" {
		return nil, no(http.StatusInternalServerError, "VM is locked (%s)\n", m.lock)
	}
	return s.fork("qmdestroy", id, func(*task) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		n, _ := strconv.Atoi(id)
		for _, other := range s.machines {
			if other.base == n {
				return fmt.Errorf("base volume '%s:base-%s-disk-0' is still in use by linked cloned", Datastore, id)
			}
		}
		if s.machines[n] == m {
			delete(s.machines, n)
		}
		return nil
	}), nil
}
