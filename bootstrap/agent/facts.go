package agent

import (
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
)

// wireFacts is what the agent knows of its machine, on the wire.
func (a *Agent) wireFacts(f host.Facts) *api.Facts {
	out := wireFacts(f)
	for _, i := range out.GetInterfaces() {
		if n, ok := a.neighbours.of(i.GetName()); ok {
			i.Neighbour = &api.Neighbour{Chassis: n.Chassis, Port: n.Port, System: n.System, PortDescription: n.PortDescription, Vlan: uint32(n.VLAN)}
		}
	}
	if c := a.controller.get(); c != nil {
		out.Bmc = &api.Controller{Address: c.Address.String(), Mac: c.MAC.String(), Vlan: uint32(c.VLAN)}
	}
	return out
}

func wireFacts(f host.Facts) *api.Facts {
	out := &api.Facts{
		Uuid: f.UUID, Serial: f.Serial, Manufacturer: f.Manufacturer, Product: f.Product,
		Cpus: uint32(f.CPUs), MemoryBytes: f.MemoryBytes, Firmware: f.Firmware, Kernel: f.Kernel, OsVersion: f.OS,
	}
	for _, i := range f.Interfaces {
		out.Interfaces = append(out.Interfaces, &api.NetworkInterface{Name: i.Name, Mac: i.MAC, Addresses: i.Addresses, Up: i.Up})
	}
	for _, d := range f.Disks {
		out.Disks = append(out.Disks, &api.Disk{Path: d.Path, SizeBytes: uint64(d.Size), Serial: d.Serial, Model: d.Model, Wwn: d.WWN, Rotational: d.Rotational, Removable: d.Removable})
	}
	return out
}
