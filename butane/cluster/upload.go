package cluster

import (
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
)

// Upload is a platform to upload images to.
type Upload struct {
	// Name is an RFC 1123 label; imagectl upload takes it.
	Name string
	// Type is one of uploadTypes.
	Type string
	// Endpoint is a URL. What is not set is empty.
	Endpoint, Datastore, Region, Bucket, Username string
	// Insecure accepts that the way to the platform is not encrypted.
	Insecure bool
	// Password is in a file or the environment.
	Password Secret
	// Options have keys that the type knows, and none that are empty. Options that
	// are files are paths that start where those of sources do.
	Options map[string]string
}

// uploadType says which keys an upload of a type has.
type uploadType struct {
	name string
	// required and allowed are keys of rawUpload besides name, type and options.
	required, allowed []string
	options           []string
	// files are the options that name a file.
	files []string
	// remote says that the endpoint is a URL by which the password travels.
	remote bool
}

func uploadTypes() []uploadType {
	return []uploadType{{
		name:     "opennebula",
		required: []string{"endpoint", "datastore", "username", "password"},
		allowed:  []string{"insecure"},
		options:  []string{"bus", "ca", "cpu", "diskMB", "fingerprint", "firmware", "frontendDirectory", "group", "memoryMB", "network", "node", "stage", "vcpu"},
		files:    []string{"ca", "node"},
		remote:   true,
	}, {
		name:     "s3",
		required: []string{"endpoint", "bucket", "username", "password"},
		allowed:  []string{"insecure", "region"},
		options:  []string{"acl", "ca", "fingerprint", "prefix"},
		files:    []string{"ca"},
		remote:   true,
	}, {
		name:     "oci",
		required: []string{"endpoint"},
		allowed:  []string{"insecure", "password", "username"},
		options:  []string{"ca", "fingerprint", "form"},
		files:    []string{"ca"},
		remote:   true,
	}, {
		name:     "libvirt",
		required: []string{"datastore", "endpoint"},
		options:  []string{"bridge", "emulate", "firmware", "memoryMB", "network", "node", "vcpu"},
		files:    []string{"node"},
	}, {
		name:     "vsphere",
		required: []string{"datastore", "endpoint", "password", "username"},
		options:  []string{"ca", "datacenter", "fingerprint", "firmware", "folder", "host", "memoryMB", "network", "node", "pool", "vcpu"},
		files:    []string{"ca", "node"},
		remote:   true,
	}, {
		name:     "vsphere-library",
		required: []string{"datastore", "endpoint", "password", "username"},
		options:  []string{"ca", "fingerprint"},
		files:    []string{"ca"},
		remote:   true,
	}, {
		name:     "proxmox",
		required: []string{"datastore", "endpoint", "password", "username"},
		options:  []string{"bridge", "ca", "cpu", "directory", "fingerprint", "firmware", "host", "import", "medium", "memoryMB", "node", "stage", "vcpu", "vlan", "vmid"},
		files:    []string{"ca", "node"},
		remote:   true,
	}, {
		name:     "aws",
		required: []string{"region"},
		allowed:  []string{"endpoint", "insecure", "password", "username"},
		options:  []string{"ca", "parameter"},
		files:    []string{"ca"},
		remote:   true,
	}, {
		name:     "azure",
		required: []string{"datastore", "password", "region"},
		allowed:  []string{"endpoint", "insecure", "username"},
		options:  []string{"ca", "login", "resourceGroup", "subscription", "tenant"},
		files:    []string{"ca"},
		remote:   true,
	}, {
		name:     "gcp",
		required: []string{"bucket", "password"},
		allowed:  []string{"endpoint", "insecure", "region"},
		options:  []string{"ca", "project"},
		files:    []string{"ca"},
		remote:   true,
	}, {
		name:    "openstack",
		allowed: []string{"endpoint", "insecure", "password", "region", "username"},
		options: []string{"bus", "ca", "cloud", "directory", "fingerprint", "firmware", "import", "stage", "visibility"},
		files:   []string{"ca"},
		remote:  true,
	}, {
		name:     "digitalocean",
		required: []string{"password", "region"},
		allowed:  []string{"endpoint", "insecure"},
		options:  []string{"directory", "stage"},
		remote:   true,
	}, {
		name:     "hetzner",
		required: []string{"password"},
		allowed:  []string{"endpoint", "insecure", "region"},
		options:  []string{"serverType"},
		remote:   true,
	}, {
		// No platform: a directory of a host that others fetch from.
		name:     "ssh",
		required: []string{"endpoint"},
		allowed:  []string{"password"},
		options:  []string{"hostKey", "url"},
	}}
}

// uploadVerbs are what imagectl upload takes in the place of a target's name.
func uploadVerbs() []string {
	return []string{"list", "promote", "rollback", "prune", "cleanup", "verify", "help"}
}

func (c *checker) uploads(raw []rawUpload) []Upload {
	var out []Upload
	seen := map[string]place{}
	for _, r := range raw {
		u := Upload{
			Name: c.label(r.Name), Endpoint: r.Endpoint.V, Datastore: r.Datastore.V, Region: r.Region.V,
			Bucket: r.Bucket.V, Username: r.Username.V, Insecure: r.Insecure.V, Password: c.secret(r.Password),
		}
		c.noAge(r.Password)
		if r.Name.Set {
			c.unique(seen, "name", u.Name, r.Name.place)
			if slices.Contains(uploadVerbs(), u.Name) {
				c.add(r.Name.Pos, r.Name.Path, "", "%q is a verb of imagectl upload; choose another name", u.Name)
			}
		}
		c.upload(r, &u)
		out = append(out, u)
	}
	c.stages(raw, out)
	return out
}

// stages wants option stage to name an entry that files can be staged at.
func (c *checker) stages(raw []rawUpload, all []Upload) {
	for i, r := range raw {
		for _, o := range r.Options {
			at := slices.IndexFunc(all, func(u Upload) bool { return u.Name == all[i].Options["stage"] })
			if o.Key == "stage" && all[i].Options["stage"] != "" && (at < 0 || all[at].Type != "s3" && all[at].Type != "ssh") {
				c.add(o.V.Pos, o.V.Path, "", "upload has no entry %q of type s3 or ssh", o.V.V)
			}
		}
	}
}

func (c *checker) upload(r rawUpload, u *Upload) {
	var names []string
	for _, t := range uploadTypes() {
		names = append(names, t.name)
	}
	if !r.Type.Set {
		return
	}
	u.Type = c.choice(r.Type, names[0], names, nil)
	if c.reported(r.Type.Path) {
		return
	}
	t := uploadTypes()[slices.Index(names, u.Type)]
	for _, k := range []struct {
		name string
		at   place
	}{
		{"endpoint", r.Endpoint.place}, {"datastore", r.Datastore.place}, {"region", r.Region.place}, {"bucket", r.Bucket.place},
		{"insecure", r.Insecure.place}, {"username", r.Username.place}, {"password", r.Password.place},
	} {
		required := slices.Contains(t.required, k.name)
		switch {
		case required && k.at.Path == "" && !c.reported(r.place.Path+"."+k.name):
			c.add(r.Pos, r.place.Path, "", "required key %q is missing, type %s needs it", k.name, t.name)
		case k.at.Path != "" && !required && !slices.Contains(t.allowed, k.name):
			c.add(k.at.Pos, k.at.Path, "remove it", "type %s has no such key", t.name)
		}
	}
	if t.remote {
		c.uploadEndpoint(r)
	}
	if t.name == "ssh" {
		c.sshDirectory(r)
	}
	for _, o := range r.Options {
		if !slices.Contains(t.options, o.Key) {
			c.add(o.Pos, o.Path, "", "type %s has no option %q; it has %s", t.name, o.Key, strings.Join(t.options, ", "))
			continue
		}
		if !o.V.Set {
			continue
		}
		if u.Options == nil {
			u.Options = map[string]string{}
		}
		u.Options[o.Key] = o.V.V
		if slices.Contains(t.files, o.Key) {
			u.Options[o.Key] = c.path(o.V)
		} else if o.V.V == "" {
			c.add(o.V.Pos, o.V.Path, "remove it, or give it a value", "is empty")
		}
		if o.Key == "fingerprint" && strings.HasPrefix(r.Endpoint.V, "http://") {
			c.add(o.V.Pos, o.V.Path, "https:// in endpoint", "there is no certificate to compare: the endpoint is without TLS")
		}
	}
}

// uploadEndpoint wants a URL, and a word about one that anybody on the way can read.
func (c *checker) uploadEndpoint(r rawUpload) {
	f := r.Endpoint
	if !f.Set {
		return
	}
	u, err := url.Parse(f.V)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		c.add(f.Pos, f.Path, "", "%q is not an http or https URL", f.V)
	case u.User != nil:
		// Not printed: it may be a password.
		c.add(f.Pos, f.Path, "", "a URL here must not carry a user or a password: cluster.yaml is in git")
	case u.Scheme == "http" && !isLoopback(u.Hostname()) && !r.Insecure.V:
		c.add(f.Pos, f.Path, "https://… through a proxy before it, or insecure: true", "the password would go to %s readable by anybody on the way", u.Host)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		c.warn(f.place, "https://… through a proxy before it", "the password goes to %s readable by anybody on the way", u.Host)
	}
}

// sshDirectory wants a directory of a host, and the key that the host is known by.
func (c *checker) sshDirectory(r rawUpload) {
	known := false
	for _, o := range r.Options {
		known = known || o.Key == "hostKey"
	}
	if !known {
		c.add(r.Pos, r.place.Path, "options: {hostKey: what ssh-keyscan -t ed25519 HOST prints after the name}", "required option \"hostKey\" is missing: type ssh knows the host by it")
	}
	f := r.Endpoint
	if !f.Set {
		return
	}
	u, err := url.Parse(f.V)
	secret := false
	if err == nil {
		_, secret = u.User.Password()
	}
	switch {
	case secret:
		c.add(f.Pos, f.Path, "password: {file: …} names a private key", "a URL here must not carry a password: cluster.yaml is in git")
	case err != nil || u.Scheme != "ssh" || u.Hostname() == "" || u.User.Username() == "" || u.RawQuery != "" || !path.IsAbs(u.Path) || path.Clean(u.Path) == "/":
		// Not printed: there may be a password in it.
		c.add(f.Pos, f.Path, "ssh://USER@HOST[:PORT]/DIRECTORY", "names no directory of a host")
	}
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// artefacts is the store that servers share.
func (c *checker) artefacts(raw rawString, uploads []Upload) string {
	i := slices.IndexFunc(uploads, func(u Upload) bool { return u.Name == raw.V })
	if raw.Set && (i < 0 || uploads[i].Type != "s3" && uploads[i].Type != "oci") {
		c.add(raw.Pos, raw.Path, "", "upload has no entry %q of type s3 or oci", raw.V)
	}
	return raw.V
}
