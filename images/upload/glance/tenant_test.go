//go:build upload

package glance_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/glance"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// tenant is a project of its own, and a user who is a member of it.
type tenant struct {
	*openstack
	t              *testing.T
	id, name, user string
	password       string
}

func (c *openstack) tenant(t *testing.T) *tenant {
	t.Helper()
	n := &tenant{openstack: c, t: t, name: "tenant-" + rand.Text(), password: rand.Text()}
	n.id = c.call(t, "POST", c.keystone+"/projects", object{"project": object{"name": n.name, "domain_id": "default"}}).sub("project").text("id")
	n.user = c.call(t, "POST", c.keystone+"/users", object{"user": object{"name": n.name, "domain_id": "default", "password": n.password}}).sub("user").text("id")
	c.call(t, "PUT", c.keystone+"/projects/"+n.id+"/users/"+n.user+"/roles/"+c.member, nil)
	return n
}

// config is that of a member who signs in by a password.
func (n *tenant) config() glance.Config {
	conf := config(n.keystone)
	conf.Auth = gophercloud.AuthOptions{IdentityEndpoint: n.keystone, Username: n.name, Password: n.password, DomainID: "default", TenantID: n.id}
	conf.Endpoint.Region = region
	conf.Wait = patient
	return conf
}

// limit is one of this project.
func (n *tenant) limit(name string, max int) {
	n.t.Helper()
	n.call(n.t, "POST", n.keystone+"/limits", object{"limits": []object{{
		"service_id": n.service, "region_id": strict, "resource_name": name, "resource_limit": max, "project_id": n.id,
	}}})
}

// images are all of the project, also those that nobody lists.
func (n *tenant) images() ([]answered, error) {
	var all []answered
	for _, hidden := range []string{"true", "false"} {
		list, _ := n.call(n.t, "GET", n.image+"/v2/images?owner="+n.id+"&os_hidden="+hidden, nil)["images"].([]any)
		for _, i := range list {
			all = append(all, answered(i.(object)))
		}
	}
	return all, nil
}

func (n *tenant) platform(conf glance.Config) uploadtest.Platform {
	return uploadtest.Platform{
		Target: func(f *uploadtest.Faults) upload.Target {
			mine := conf
			mine.Client = &http.Client{Transport: f.Transport(http.DefaultTransport)}
			return target(n.t, mine)
		},
		Stranger: func() upload.Target {
			theirs := conf
			theirs.Auth.Password = "wrong"
			return target(n.t, theirs)
		},
		Leftovers: func() (left []string, err error) {
			all, err := n.images()
			for _, i := range all {
				if i.text("imagectl") == "1" {
					left = append(left, i.text("id")+" "+i.text("status"))
				}
			}
			return left, err
		},
		Plant: n.plant,
		Absent: map[uploadtest.Case]string{
			uploadtest.Full:      "one store is there for all tests: \"a store that is full\" has it for itself",
			uploadtest.Quota:     "Glance reads quotas where unified limits are on: \"a site that converts what is imported, and has quotas\" has them",
			uploadtest.InUse:     "only stores that clone an image refuse to delete it (Ceph), and this one keeps files; the stand-in refuses",
			uploadtest.CalledOff: "the file is sent by this process",
			uploadtest.Storm:     storm,
			uploadtest.Options:   noTemplate,
			uploadtest.Forgotten: notAlone,
		},
		Slow: true, Slower: true,
	}
}

// patient asks a server that needs a while for each answer.
func patient(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(50 * time.Millisecond):
		return nil
	}
}

// plant makes an image of somebody else in the same project.
func (n *tenant) plant() func() error {
	id := n.call(n.t, "POST", n.image+"/v2/images", object{
		"name": "prod-worker", "owner": n.id, "tags": []string{"imagectl"}, "disk_format": "raw", "container_format": "bare",
	}).text("id")
	at := n.image + "/v2/images/" + id
	before := fmt.Sprint(n.call(n.t, "GET", at, nil))
	return func() error {
		if after := fmt.Sprint(n.call(n.t, "GET", at, nil)); after != before {
			return fmt.Errorf("the image of somebody else was %s and is %s", before, after)
		}
		return nil
	}
}
