// Package snippet translates one Butane file (variant flatcar, version 1.1.0) to
// Ignition 3.4.0, the newest that every current Flatcar channel reads, and
// refuses what would open a door of the lock-down again, fetch something that
// nobody pinned, or fight with the image.
package snippet

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/coreos/butane/config/common"
	flatcar "github.com/coreos/butane/config/flatcar/v1_1"
	ignition "github.com/coreos/ignition/v2/config/v3_4"
	"github.com/coreos/ignition/v2/config/v3_4/types"
	"github.com/coreos/vcontext/report"
	"github.com/vincent-petithory/dataurl"
	"gopkg.in/yaml.v3"

	"github.com/imagectl/imagectl/butane/diag"
	"github.com/imagectl/imagectl/butane/lockdown"
)

// Translate returns the Ignition config of a Butane file and what is to be said
// about the file. The config is meaningful when no finding is an error. file is
// for positions; dir is where local: references start.
func Translate(file string, content []byte, dir string) (types.Config, diag.List) {
	at := func(line, col int) diag.Pos { return diag.Pos{File: file, Line: line, Column: col} }
	var head struct {
		Variant string `yaml:"variant"`
		Version string `yaml:"version"`
	}
	if err := yaml.Unmarshal(content, &head); err != nil {
		return types.Config{}, diag.List{{Pos: at(1, 0), Message: "not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}}
	}
	if head.Variant != "flatcar" || head.Version != "1.1.0" {
		return types.Config{}, diag.List{{
			Pos:     at(1, 1),
			Message: fmt.Sprintf("is Butane variant %q version %q, want flatcar 1.1.0: every current Flatcar channel reads what it translates to", head.Variant, head.Version),
			Hint:    "variant: flatcar\nversion: 1.1.0",
		}}
	}
	out, rep, err := flatcar.ToIgn3_4Bytes(content, common.TranslateBytesOptions{
		// Compression would make a review of the result, and its diff, pointless.
		TranslateOptions: common.TranslateOptions{FilesDir: dir, NoResourceAutoCompression: true},
		Raw:              true,
	})
	found := findings(file, rep)
	if err != nil {
		if found.Err() == nil {
			found = append(found, diag.Finding{Pos: at(1, 0), Message: "cannot be translated: " + err.Error()})
		}
		return types.Config{}, found
	}
	cfg, _, err := ignition.Parse(out)
	if err != nil {
		return types.Config{}, append(found, diag.Finding{Pos: at(1, 0), Message: "translates to Ignition that is not valid: " + err.Error()})
	}
	tree := position{file: file}
	if err := yaml.Unmarshal(content, &tree.doc); err != nil {
		return types.Config{}, append(found, diag.Finding{Pos: at(1, 0), Message: "not valid YAML: " + err.Error()})
	}
	return cfg, append(found, refuse(cfg, tree)...)
}

// findings takes over what Butane and Ignition's validator say.
func findings(file string, rep report.Report) diag.List {
	var out diag.List
	for _, e := range rep.Entries {
		f := diag.Finding{Pos: diag.Pos{File: file}, Path: strings.TrimPrefix(e.Context.String(), "$."), Message: e.Message}
		if e.Marker.StartP != nil {
			line, col := e.Marker.Start()
			f.Line, f.Column = int(line), int(col)
		}
		// Butane only warns of a key that it does not know; a misspelt one must not
		// become a node that lacks something.
		if !e.Kind.IsFatal() && !strings.HasPrefix(e.Message, "unused key") {
			f.Severity = diag.Warning
		}
		out = append(out, f)
	}
	return out
}

// closed says what the lock-down owns.
type closed struct {
	units, paths map[string]string // to the door's name
}

func doors() closed {
	c := closed{units: map[string]string{}, paths: map[string]string{}}
	for _, d := range lockdown.Doors() {
		for _, u := range d.Masks {
			c.units[u] = d.Name
		}
		for _, u := range d.Units {
			c.units[u.Name] = d.Name
		}
		for _, l := range d.Links {
			c.paths[l.Path] = d.Name
		}
		for _, f := range d.Files {
			c.paths[f.Path] = d.Name
		}
	}
	return c
}

// door returns the door that a path would open, if any: one that the lock-down
// writes, a unit or a drop-in of a closed unit, anything sudo, SSH or PAM reads.
func (c closed) door(p string) (string, bool) {
	p = path.Clean(p)
	if d, ok := c.paths[p]; ok {
		return d, true
	}
	for _, dir := range []string{"/etc/systemd/system/", "/usr/local/lib/systemd/system/", "/run/systemd/system/"} {
		rest, ok := strings.CutPrefix(p, dir)
		if !ok {
			continue
		}
		unit, _, _ := strings.Cut(rest, "/")
		if d, ok := c.unit(strings.TrimSuffix(unit, ".d")); ok {
			return d, true
		}
	}
	for prefix, d := range map[string]string{
		"/etc/systemd/system-generators/": "generators",
		"/etc/sudoers.d/":                 "sudo",
		"/etc/ssh/":                       "ssh",
		"/root/.ssh/":                     "ssh",
		"/home/core/.ssh/":                "ssh",
		"/etc/pam.d/":                     "login",
	} {
		if strings.HasPrefix(p+"/", prefix) {
			return d, true
		}
	}
	switch p {
	case "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow":
		return "login", true
	}
	return "", false
}

// unit finds a closed unit by its name or by its template's.
func (c closed) unit(name string) (string, bool) {
	if d, ok := c.units[name]; ok {
		return d, true
	}
	prefix, rest, ok := strings.Cut(name, "@")
	if !ok {
		return "", false
	}
	d, ok := c.units[prefix+"@"+path.Ext(rest)]
	return d, ok
}

func refuse(cfg types.Config, tree position) diag.List {
	var out diag.List
	add := func(pos diag.Pos, p, hint, format string, args ...any) {
		out = append(out, diag.Finding{Pos: pos, Path: p, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	closed := doors()
	for i, u := range cfg.Systemd.Units {
		if d, ok := closed.unit(u.Name); ok {
			add(tree.item("name", u.Name, "systemd", "units"), fmt.Sprintf("systemd.units[%d]", i), "remove it", "unit %s belongs to the lock-down (%s) and stays closed", u.Name, d)
		}
	}
	paths := func(kind, p string, i int) {
		at := tree.item("path", p, "storage", kind)
		where := fmt.Sprintf("storage.%s[%d]", kind, i)
		if d, ok := closed.door(p); ok {
			add(at, where, "remove it", "%s belongs to the lock-down (%s) and stays closed", p, d)
		}
		switch clean := path.Clean(p); {
		case clean == "/usr" || strings.HasPrefix(clean, "/usr/") && !strings.HasPrefix(clean, "/usr/local/"):
			add(at, where, "put it into a system extension", "%s is on /usr, which is read-only and verified", p)
		case strings.HasPrefix(clean, "/etc/imagectl") || strings.HasPrefix(clean, "/var/lib/imagectl"):
			add(at, where, "", "%s belongs to imagectl", p)
		case strings.HasPrefix(clean, "/etc/extensions/"):
			add(at, where, "list it in cluster.yaml: roles.NAME.extensions", "%s: system extensions are locked inputs", p)
		}
	}
	for i, f := range cfg.Storage.Files {
		paths("files", f.Path, i)
		for _, r := range append([]types.Resource{f.Contents}, f.Append...) {
			if r.Source != nil && !strings.HasPrefix(*r.Source, "data:") && (r.Verification.Hash == nil || *r.Verification.Hash == "") {
				add(tree.item("path", f.Path, "storage", "files"), fmt.Sprintf("storage.files[%d].contents", i), "verification:\n  hash: sha256-…", "%s is fetched from the network and nothing says which bytes it must have", f.Path)
			}
		}
	}
	for i, f := range cfg.Storage.Files {
		for _, r := range append([]types.Resource{f.Contents}, f.Append...) {
			if secret(r) {
				add(tree.item("path", f.Path, "storage", "files"), fmt.Sprintf("storage.files[%d]", i), "bring it with a Kubernetes Secret, or let the node make its own key", "%s holds a private key, and images are handed to any machine on the boot network", f.Path)
			}
		}
	}
	for i, d := range cfg.Storage.Directories {
		paths("directories", d.Path, i)
	}
	for i, l := range cfg.Storage.Links {
		paths("links", l.Path, i)
	}
	for i, u := range cfg.Passwd.Users {
		at, where := tree.item("name", u.Name, "passwd", "users"), fmt.Sprintf("passwd.users[%d]", i)
		if len(u.SSHAuthorizedKeys) > 0 || (u.PasswordHash != nil && *u.PasswordHash != "") {
			add(at, where, "remove it; imagectl status, logs and support-bundle show what a node does", "user %s gets a password or an SSH key, and nobody logs in to a node", u.Name)
		}
		if u.Name == "core" || u.Name == "root" {
			add(at, where, "remove it", "user %s belongs to the lock-down and stays closed", u.Name)
		}
	}
	if len(cfg.KernelArguments.ShouldExist)+len(cfg.KernelArguments.ShouldNotExist) > 0 {
		add(tree.at("kernel_arguments"), "kernel_arguments", "list them in cluster.yaml: roles.NAME.kernelArgs", "Ignition would rewrite GRUB's configuration and reboot once more; arguments are part of the image")
	}
	if len(cfg.Ignition.Config.Merge) > 0 || cfg.Ignition.Config.Replace.Source != nil {
		add(tree.at("ignition", "config"), "ignition.config", "list more files in cluster.yaml: roles.NAME.butane", "another config is fetched at first boot, unreviewed, and may drop the lock-down")
	}
	return out
}

// privateKey is how PEM, OpenSSH and age begin one.
var privateKey = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----|AGE-SECRET-KEY-1`)

// secret says whether embedded content holds a private key.
func secret(r types.Resource) bool {
	if r.Source == nil || !strings.HasPrefix(*r.Source, "data:") {
		return false
	}
	u, err := dataurl.DecodeString(*r.Source)
	return err == nil && privateKey.Match(u.Data)
}

// position finds where things stand in a Butane file.
type position struct {
	file string
	doc  yaml.Node
}

// at is the position of a key path, or of the deepest part of it that exists.
func (p position) at(keys ...string) diag.Pos {
	_, pos := p.find(keys)
	return pos
}

func (p position) find(keys []string) (*yaml.Node, diag.Pos) {
	pos := diag.Pos{File: p.file, Line: 1, Column: 1}
	if len(p.doc.Content) == 0 {
		return nil, pos
	}
	n := p.doc.Content[0]
	for _, key := range keys {
		next := value(n, key)
		if next == nil {
			return nil, pos
		}
		n, pos = next, diag.Pos{File: p.file, Line: next.Line, Column: next.Column}
	}
	return n, pos
}

// item is the position of the list item whose key has a value.
func (p position) item(key, want string, keys ...string) diag.Pos {
	list, pos := p.find(keys)
	if list == nil || list.Kind != yaml.SequenceNode {
		return pos
	}
	for _, item := range list.Content {
		if v := value(item, key); v != nil && v.Value == want {
			return diag.Pos{File: p.file, Line: v.Line, Column: v.Column}
		}
	}
	return pos
}

func value(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
