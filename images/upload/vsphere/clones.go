package vsphere

import (
	"context"
	"slices"

	"github.com/vmware/govmomi/vim25/types"
)

// disks of a machine.
func (s *session) disks(ctx context.Context, ref types.ManagedObjectReference) ([]*types.VirtualDisk, error) {
	v, err := s.one(ctx, ref, "config.hardware.device")
	return onlyDisks(v), err
}

func onlyDisks(v any) []*types.VirtualDisk {
	var out []*types.VirtualDisk
	if all, is := v.(types.ArrayOfVirtualDevice); is {
		for _, d := range all.VirtualDevice {
			if disk, is := d.(*types.VirtualDisk); is {
				out = append(out, disk)
			}
		}
	}
	return out
}

// files are those of a disk and of what it lies on.
func files(d *types.VirtualDisk) []string {
	var out []string
	if b, is := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); is {
		for ; b != nil; b = b.Parent {
			out = append(out, b.FileName)
		}
	}
	if b, is := d.Backing.(*types.VirtualDiskSeSparseBackingInfo); is {
		for ; b != nil; b = b.Parent {
			out = append(out, b.FileName)
		}
	}
	return out
}

// user finds a machine whose disk lies on a template's: a linked clone. vCenter
// would delete the disk below it. It sees those that the user may see.
func (t *Target) user(ctx context.Context, s *session, template types.ManagedObjectReference) (string, error) {
	disks, err := s.disks(ctx, template)
	if err != nil {
		return "", failed(ctx, "reading the hardware of "+template.Value, err)
	}
	var own []string
	for _, d := range disks {
		own = append(own, files(d)...)
	}
	all, err := s.everywhere(ctx)
	if err != nil {
		return "", failed(ctx, "looking for linked clones", err)
	}
	for _, o := range all {
		if o.Obj == template {
			continue
		}
		name, uses := o.Obj.Value, false
		for _, p := range o.PropSet {
			if text, is := p.Val.(string); is {
				name = text
			}
			for _, d := range onlyDisks(p.Val) {
				uses = uses || slices.ContainsFunc(files(d), func(f string) bool { return slices.Contains(own, f) })
			}
		}
		if uses {
			return name, nil
		}
	}
	return "", nil
}

// everywhere reads the hardware of all machines below the vCenter's root.
func (s *session) everywhere(ctx context.Context) ([]types.ObjectContent, error) {
	yes := true
	const walk = "walk"
	again := []types.BaseSelectionSpec{&types.SelectionSpec{Name: walk}, &types.SelectionSpec{Name: walk + " datacenter"}}
	return s.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: s.ServiceContent.RootFolder, Skip: &yes, SelectSet: []types.BaseSelectionSpec{
			&types.TraversalSpec{SelectionSpec: types.SelectionSpec{Name: walk}, Type: "Folder", Path: "childEntity", SelectSet: again},
			&types.TraversalSpec{SelectionSpec: types.SelectionSpec{Name: walk + " datacenter"}, Type: "Datacenter", Path: "vmFolder", SelectSet: again},
		}}},
		PropSet: []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"name", "config.hardware.device"}}},
	})
}
