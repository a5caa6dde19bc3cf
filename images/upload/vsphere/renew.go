package vsphere

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/imagectl/imagectl/images/upload"
)

// keySettings is the advanced setting with a digest of the options that a template was
// given: vCenter adds to what it is told.
const keySettings = "settings"

// fieldChanging is the custom attribute of a template that is a machine for a moment,
// because of a template vCenter changes nothing but its name and its notes; changingMark
// is its value then. Whoever finds it may end what was begun.
const (
	fieldChanging = "imagectl-changing"
	changingMark  = "imagectl is changing this template"
)

// settings are what the options say of a template, as a digest.
func (t *Target) settings() string {
	text := fmt.Sprintf("%d\x00%d\x00%s\x00%s\x00%s", t.CPUs, t.MemoryMB, t.Firmware, t.Network, t.Node)
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// Stale implements upload.Templates.
func (t *Target) Stale(ctx context.Context, o upload.Object) (bool, error) {
	s, err := t.open(ctx)
	if err != nil {
		return false, err
	}
	all, err := s.machines(ctx)
	if err != nil {
		return false, err
	}
	m, err := byID(all, o)
	if err != nil {
		return false, err
	}
	return m.current() && t.stale(*m), nil
}

func (t *Target) stale(m machine) bool {
	return m.changing() || m.labels[keySettings] != t.settings()
}

// renew gives a template the options of now. Broken off, it is done again.
func (t *Target) renew(ctx context.Context, s *session, m machine) error {
	if !t.stale(m) {
		return nil
	}
	if m.template && m.labels[keySettings] != t.settings() {
		if !m.changing() {
			if err := s.setField(ctx, m.ref, fieldChanging, changingMark); err != nil {
				return err
			}
		}
		if _, err := methods.MarkAsVirtualMachine(ctx, s, &types.MarkAsVirtualMachine{This: m.ref, Pool: s.pool, Host: s.host}); err != nil {
			return failed(ctx, "making a machine of the template "+m.name, err)
		}
		m.template = false
	}
	if !m.template {
		if err := t.reconfigure(ctx, s, m); err != nil {
			return err
		}
		if _, err := methods.MarkAsTemplate(ctx, s, &types.MarkAsTemplate{This: m.ref}); err != nil {
			return failed(ctx, "making a template of "+m.name, err)
		}
	}
	return s.setField(ctx, m.ref, fieldChanging, "")
}

func (t *Target) reconfigure(ctx context.Context, s *session, m machine) error {
	fail := func(err error) error { return failed(ctx, "changing the hardware of "+m.name, err) }
	p, err := s.properties(ctx, m.ref, "config.hardware.device", "config.vAppConfig")
	if err != nil {
		return fail(err)
	}
	spec := types.VirtualMachineConfigSpec{
		NumCPUs: int32(t.CPUs), MemoryMB: int64(t.MemoryMB), Firmware: string(t.Firmware),
		ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: keyPrefix + keySettings, Value: t.settings()}},
	}
	if spec.VAppConfig, err = t.nodeSpec(p["config.vAppConfig"]); err != nil {
		return fail(err)
	}
	if spec.DeviceChange, err = t.cardSpec(ctx, s, p["config.hardware.device"]); err != nil {
		return fail(err)
	}
	answer, err := methods.ReconfigVM_Task(ctx, s, &types.ReconfigVM_Task{This: m.ref, Spec: spec})
	if err == nil {
		err = t.await(ctx, s, answer.Returnval)
	}
	return fail(err)
}

// nodeSpec puts node.json into the property of the template that the OVF has for it.
func (t *Target) nodeSpec(v any) (types.BaseVmConfigSpec, error) {
	var all []types.VAppPropertyInfo
	switch c := v.(type) {
	case types.VmConfigInfo:
		all = c.Property
	case *types.VmConfigInfo:
		all = c.Property
	}
	for _, p := range all {
		if p.Id != nodeProperty {
			continue
		}
		p.Value = base64.StdEncoding.EncodeToString(t.Node)
		return &types.VmConfigSpec{Property: []types.VAppPropertySpec{{
			ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationEdit}, Info: &p,
		}}}, nil
	}
	if len(t.Node) == 0 {
		return nil, nil
	}
	return nil, fmt.Errorf("%w: the template has no property %s to put node.json into", upload.ErrServer, nodeProperty)
}

// cardSpec connects the template's card to the network.
func (t *Target) cardSpec(ctx context.Context, s *session, v any) ([]types.BaseVirtualDeviceConfigSpec, error) {
	devices, _ := v.(types.ArrayOfVirtualDevice)
	for _, d := range devices.VirtualDevice {
		card, is := d.(types.BaseVirtualEthernetCard)
		if !is {
			continue
		}
		network, is := object.NewReference(s.Client, s.network).(object.NetworkReference)
		if !is {
			return nil, fmt.Errorf("%w: %s is no network but a %s", upload.ErrServer, t.Network, s.network.Type)
		}
		backing, err := network.EthernetCardBackingInfo(ctx)
		if err != nil {
			return nil, err
		}
		card.GetVirtualEthernetCard().Backing = backing
		return []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: d}}, nil
	}
	return nil, fmt.Errorf("%w: the template has no network card", upload.ErrServer)
}

var _ upload.Templates = (*Target)(nil)
