package terraform

import (
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// block is what a provider takes in one, as far as the examples use it.
type block struct {
	// attributes by name, of which needed have to be there; all can be read.
	attributes map[string]cty.Type
	needed     []string
	blocks     map[string]block
}

// schemas are of the providers' sources, read and written down here by hand: neither could be
// had as a Go module, which would have judged by itself. OpenNebula/terraform-provider-opennebula
// (data_opennebula_template.go, resource_opennebula_virtual_machine.go, provider.go) and
// terraform-provider-openstack/terraform-provider-openstack
// (data_source_openstack_images_image_v2.go, resource_openstack_compute_instance_v2.go). What a
// server says to these values is not judged.
func schemas() map[string]block {
	return map[string]block{
		"provider.opennebula": {attributes: map[string]cty.Type{"endpoint": cty.String, "username": cty.String, "password": cty.String}},
		"data.opennebula_template": {attributes: map[string]cty.Type{
			"id": cty.Number, "name": cty.String, "has_cpu": cty.Bool, "has_vcpu": cty.Bool, "has_memory": cty.Bool, "cpu": cty.Number, "vcpu": cty.Number, "memory": cty.Number,
		}},
		"resource.opennebula_virtual_machine": {attributes: map[string]cty.Type{
			"name": cty.String, "template_id": cty.Number, "pending": cty.Bool, "permissions": cty.String, "keep_nic_order": cty.Bool, "group": cty.String,
		}},
		"data.openstack_images_image_v2": {attributes: map[string]cty.Type{
			"id": cty.String, "region": cty.String, "name": cty.String, "visibility": cty.String, "member_status": cty.String, "owner": cty.String,
			"size_min": cty.Number, "size_max": cty.Number, "sort_key": cty.String, "sort_direction": cty.String, "tag": cty.String, "most_recent": cty.Bool,
		}},
		"resource.openstack_compute_instance_v2": {
			attributes: map[string]cty.Type{
				"region": cty.String, "name": cty.String, "image_id": cty.String, "image_name": cty.String, "flavor_id": cty.String, "flavor_name": cty.String,
				"hostname": cty.String, "user_data": cty.String, "availability_zone": cty.String, "network_mode": cty.String, "config_drive": cty.Bool,
				"key_pair": cty.String, "power_state": cty.String, "stop_before_destroy": cty.Bool,
			},
			needed: []string{"name"},
			blocks: map[string]block{"network": {attributes: map[string]cty.Type{
				"uuid": cty.String, "name": cty.String, "port": cty.String, "fixed_ip_v4": cty.String, "fixed_ip_v6": cty.String, "access_network": cty.Bool,
			}}},
		},
	}
}

// meta are Terraform's own, which every resource takes.
func meta(name string) bool {
	return name == "count" || name == "for_each" || name == "depends_on" || name == "provider" || name == "lifecycle"
}

// What an example says is what its provider's source takes: names, kinds, and what has to be
// there; so is what it reads from another block.
func TestExamplesFitTheProviders(t *testing.T) {
	all := schemas()
	for _, e := range examples(t) {
		f, bad := hclsyntax.ParseConfig([]byte(e.text), e.name, hcl.InitialPos)
		if bad.HasErrors() {
			t.Errorf("%s: %v", e.name, bad)
			continue
		}
		judged := 0
		for _, b := range f.Body.(*hclsyntax.Body).Blocks {
			if b.Type == "terraform" {
				continue
			}
			name := b.Type + "." + b.Labels[0]
			s, known := all[name]
			if !known {
				t.Errorf("%s: nothing is known of %s: read it up in the provider's source", e.name, name)
				continue
			}
			judged++
			s.judge(t, e.name+": "+name, b.Body, all)
		}
		if judged == 0 {
			t.Errorf("%s has no block that could be judged", e.name)
		}
	}
}

func (s block) judge(t *testing.T, where string, body *hclsyntax.Body, all map[string]block) {
	t.Helper()
	for _, name := range s.needed {
		if body.Attributes[name] == nil {
			t.Errorf("%s lacks %s", where, name)
		}
	}
	for name, a := range body.Attributes {
		if meta(name) {
			continue
		}
		kind, known := s.attributes[name]
		if !known {
			t.Errorf("%s takes no %s", where, name)
			continue
		}
		for _, v := range a.Expr.Variables() {
			reads(t, where, v, all)
		}
		value, bad := a.Expr.Value(nil)
		if bad.HasErrors() {
			// It depends on another block, or is a function's.
			continue
		}
		if _, err := convert.Convert(value, kind); err != nil {
			t.Errorf("%s: %s is %s: %v", where, name, value.GoString(), err)
		}
	}
	for _, b := range body.Blocks {
		if meta(b.Type) {
			s.ignores(t, where, b.Body)
			continue
		}
		inner, known := s.blocks[b.Type]
		if !known {
			t.Errorf("%s takes no block %s", where, b.Type)
			continue
		}
		inner.judge(t, where+"."+b.Type, b.Body, all)
	}
}

// reads wants data.KIND.NAME.ATTRIBUTE to be what the kind has.
func reads(t *testing.T, where string, v hcl.Traversal, all map[string]block) {
	t.Helper()
	if v.RootName() != "data" || len(v) < 4 {
		return
	}
	kind, what := v[1].(hcl.TraverseAttr).Name, v[3].(hcl.TraverseAttr).Name
	if _, has := all["data."+kind].attributes[what]; !has {
		t.Errorf("%s reads %s of %s, which has none", where, what, kind)
	}
}

// ignores wants what ignore_changes names to be there.
func (s block) ignores(t *testing.T, where string, body *hclsyntax.Body) {
	t.Helper()
	a := body.Attributes["ignore_changes"]
	if a == nil {
		return
	}
	for _, v := range a.Expr.Variables() {
		if _, has := s.attributes[v.RootName()]; !has {
			t.Errorf("%s ignores changes of %s, which it does not take", where, v.RootName())
		}
	}
}
