package build

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/sysext"
)

// extensionTargets are a role's extensions one by one, where a machine has no disk that
// they would be on.
func (r *run) extensionTargets(role Role) []target {
	if !role.Diskless {
		return nil
	}
	var out []target
	add := func(name string, inputs []store.Input) {
		slices.SortFunc(inputs, func(a, b store.Input) int { return strings.Compare(string(a.ID), string(b.ID)) })
		out = append(out, target{
			name: r.imageName(role) + "." + name + ".raw", role: role.Name, format: store.Extension, extension: name, sets: []Set{SetPXE},
			recipe: recipe([]string{"role's extension 1", r.in.Builder, r.in.Arch, name, r.time.String()}, inputs), inputs: inputs,
		})
	}
	ours := func(name string, blobs ...lock.Blob) {
		var inputs []store.Input
		for _, b := range blobs {
			inputs = append(inputs, input(b))
		}
		add(name, inputs)
	}
	var recipes []store.Input
	runtimes := false
	for _, e := range role.Extensions {
		var inputs []store.Input
		for _, b := range e.blobs() {
			inputs = append(inputs, input(b))
		}
		if e.Recipe != nil {
			made := store.Input{ID: "recipes/" + lock.ID(e.Recipe.Name), SHA256: e.Recipe.Digest}
			inputs, recipes = append(inputs, made), append(recipes, made)
			runtimes = runtimes || len(e.Recipe.Runtimes) > 0
		}
		add(e.Name, inputs)
	}
	ours(sysext.AgentName, r.in.Agent)
	ours(sysext.KubernetesName, r.in.Kubeadm, r.in.Kubelet, r.in.Kubectl, r.in.CNIArchive)
	if role.ControlPlane {
		ours(sysext.EtcdName, r.in.EtcdArchive)
	}
	if len(r.in.Images) > 0 {
		ours(sysext.ImagesName, r.in.Images...)
	}
	if runtimes {
		add(sysext.RuntimesName, recipes)
	}
	return out
}

// copyExtensions makes those of the missing targets that are a role's extensions.
func (r *run) copyExtensions(ctx context.Context, role Role, made []extensionFile, missing []target) error {
	for _, t := range missing {
		if t.role != role.Name || t.extension == "" {
			continue
		}
		i := slices.IndexFunc(made, func(e extensionFile) bool { return e.name == t.extension })
		if i < 0 {
			return fmt.Errorf("building role %s: extension %s was not made", role.Name, t.extension)
		}
		if err := r.copyFile(ctx, t, made[i].path); err != nil {
			return err
		}
	}
	return nil
}
