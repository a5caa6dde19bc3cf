package vsphere_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/images/upload/vsphere"
)

// vcenter is govmomi's simulator with one datacenter, one cluster and one host.
// Each platform is a folder of its own in it.
type vcenter struct {
	*testing.T
	sim    *simulator.Registry
	server *simulator.Server
	// folder of virtual machines; the datacenter's if its name is empty.
	folderName string
	folder     types.ManagedObjectReference
	renames    *sync.Mutex
}

func startVCenter(t *testing.T, secure bool) *vcenter {
	t.Helper()
	m := simulator.VPX()
	m.Host, m.ClusterHost, m.Machine, m.Portgroup, m.Autostart = 0, 1, 0, 1, false
	if err := m.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Remove)
	m.Service.Listen = &url.URL{User: url.UserPassword("ops", "secret")}
	m.Service.RegisterEndpoints = true // the content library, too
	if secure {
		m.Service.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	server := m.Service.NewServer()
	t.Cleanup(server.Close)
	dc := m.Map().Any("Datacenter").(*simulator.Datacenter)
	return &vcenter{T: t, sim: m.Map(), server: server, folder: dc.VmFolder, renames: new(sync.Mutex)}
}

// fresh is another folder of the same vCenter.
func (v *vcenter) fresh(t *testing.T) *vcenter {
	t.Helper()
	own := *v
	own.T, own.folderName = t, "f"+rand.Text()
	made, err := object.NewFolder(own.client().Client, v.folder).CreateFolder(t.Context(), own.folderName)
	if err != nil {
		t.Fatal(err)
	}
	own.folder = made.Reference()
	return &own
}

// client is somebody else's.
func (v *vcenter) client() *govmomi.Client {
	v.Helper()
	c, err := govmomi.NewClient(v.Context(), v.server.URL, true)
	if err != nil {
		v.Fatal(err)
	}
	return c
}

func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

// never is a beat that does not come while a test sends.
func never(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (v *vcenter) config() vsphere.Config {
	u := *v.server.URL
	u.User = nil
	return vsphere.Config{
		Endpoint: u.String(), Username: "ops", Password: "secret", Datacenter: "DC0", Pool: "DC0_C0", Datastore: "LocalDS_0",
		Network: "VM Network", Folder: v.folderName, Host: "DC0_C0/DC0_C0_H0", Node: []byte(`{"cluster":"prod"}`), Transport: settled{http.DefaultTransport, v.renames},
		Random: rand.Reader, Now: time.Now, Wait: wait, Beat: never,
	}
}

func (v *vcenter) target(c vsphere.Config) *vsphere.Target {
	v.Helper()
	t, err := vsphere.New(c)
	if err != nil {
		v.Fatal(err)
	}
	return t
}

// settled answers an import when its machine is there: one whose answer is lost has
// made it, or never will. A real vCenter removes it when the lease ends, and the
// simulator does not. It lets one machine be renamed after the other: the simulator
// looks whether a name is free and then takes it, so that two can have it at once.
type settled struct {
	base    http.RoundTripper
	renames *sync.Mutex
}

var begun = regexp.MustCompile(`<returnval type="(HttpNfcLease|Task)">([^<]+)</returnval>`)

// unfinished are states of leases and tasks.
var unfinished = regexp.MustCompile(`>(initializing|running|queued)<`)

const askState = `<?xml version="1.0"?><Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><RetrievePropertiesEx xmlns="urn:vim25"><_this type="PropertyCollector">propertyCollector</_this><specSet><propSet><type>%[1]s</type><pathSet>%[2]s</pathSet></propSet><objectSet><obj type="%[1]s">%[3]s</obj></objectSet></specSet><options></options></RetrievePropertiesEx></Body></Envelope>`

func (s settled) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if strings.HasSuffix(r.URL.Path, "/sdk") {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	if bytes.Contains(body, []byte("<Rename_Task ")) {
		s.renames.Lock()
		defer s.renames.Unlock()
	}
	text, resp, err := s.send(r, body)
	what := begun.FindStringSubmatch(text)
	for err == nil && what != nil {
		property := map[string]string{"HttpNfcLease": "state", "Task": "info.state"}[what[1]]
		state, _, err := s.send(r, []byte(fmt.Sprintf(askState, what[1], property, what[2])))
		if err != nil {
			return nil, err
		}
		if !unfinished.MatchString(state) {
			break
		}
	}
	return resp, err
}

// send sends a request, with another body if there is one, and reads the answer.
func (s settled) send(r *http.Request, body []byte) (string, *http.Response, error) {
	if body != nil {
		r = r.Clone(context.WithoutCancel(r.Context()))
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	resp, err := s.base.RoundTrip(r)
	if err != nil {
		return "", nil, err
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(b))
	return string(b), resp, err
}

func (v *vcenter) machines() []*simulator.VirtualMachine {
	folder := v.sim.Get(v.folder).(*simulator.Folder)
	var refs []types.ManagedObjectReference
	v.locked(folder, func() { refs = slices.Clone(folder.ChildEntity) })
	var out []*simulator.VirtualMachine
	for _, ref := range refs {
		if m, is := v.sim.Get(ref).(*simulator.VirtualMachine); is {
			out = append(out, m)
		}
	}
	return out
}

// locked runs f with a machine that nothing changes meanwhile.
func (v *vcenter) locked(m mo.Reference, f func()) { v.sim.WithLock(&simulator.Context{}, m, f) }

// names are those of machines that are not foreign.
func (v *vcenter) names() []string {
	var out []string
	for _, m := range v.machines() {
		v.locked(m, func() {
			if !strings.HasPrefix(m.Name, "foreign") {
				out = append(out, m.Name)
			}
		})
	}
	return out
}

func (v *vcenter) machine(id string) *simulator.VirtualMachine {
	m, _ := v.sim.Get(types.ManagedObjectReference{Type: "VirtualMachine", Value: id}).(*simulator.VirtualMachine)
	return m
}

// add makes a machine of somebody else's.
func (v *vcenter) add(spec types.VirtualMachineConfigSpec) *simulator.VirtualMachine {
	v.Helper()
	ctx, c := v.Context(), v.client()
	spec.Files = &types.VirtualMachineFileInfo{VmPathName: "[LocalDS_0]"}
	pool := object.NewResourcePool(c.Client, v.sim.Any("ResourcePool").Reference())
	task, err := object.NewFolder(c.Client, v.folder).CreateVM(ctx, spec, pool, nil)
	if err != nil {
		v.Fatal(err)
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		v.Fatal(err)
	}
	return v.machine(info.Result.(types.ManagedObjectReference).Value)
}

// describe says what a template of a name is like; nothing if there is none.
func (v *vcenter) describe(name string) string {
	out := ""
	for _, m := range v.machines() {
		v.locked(m, func() {
			if m.Name != name {
				return
			}
			out = fmt.Sprintf("template %t, %d CPUs, %d MB, %s;", m.Config.Template, m.Config.Hardware.NumCPU, m.Config.Hardware.MemoryMB, m.Config.Firmware)
			for _, d := range object.VirtualDeviceList(m.Config.Hardware.Device).SelectByType((*types.VirtualEthernetCard)(nil)) {
				if _, is := d.GetVirtualDevice().Backing.(*types.VirtualEthernetCardDistributedVirtualPortBackingInfo); is {
					out += " card in the DVPG;"
				}
			}
			for _, p := range m.Config.VAppConfig.GetVmConfigInfo().Property {
				if p.Id == "guestinfo.imagectl.node" {
					out += " node " + p.Value + ";"
				}
			}
		})
	}
	return out
}

// clone has a machine's disk lie on that of a template.
func (v *vcenter) clone(o upload.Object) error {
	m := v.machine(o.ID)
	if m == nil {
		return fmt.Errorf("there is no %s", o.ID)
	}
	var base string
	v.locked(m, func() {
		for _, d := range object.VirtualDeviceList(m.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
			base = d.(*types.VirtualDisk).Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName
		}
	})
	if base == "" {
		return errors.New("the template has no disk")
	}
	c := v.add(types.VirtualMachineConfigSpec{Name: "foreign-clone"})
	v.locked(c, func() {
		top := &types.VirtualDiskFlatVer2BackingInfo{Parent: &types.VirtualDiskFlatVer2BackingInfo{}}
		top.FileName, top.Parent.FileName = "[LocalDS_0] foreign-clone/disk.vmdk", base
		c.Config.Hardware.Device = append(c.Config.Hardware.Device, &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: 2000, Backing: top}})
	})
	return nil
}

func (v *vcenter) full() {
	ds := v.sim.Any("Datastore").(*simulator.Datastore)
	set := func(n int64) (before int64) {
		v.locked(ds, func() { before, ds.Summary.FreeSpace = ds.Summary.FreeSpace, n })
		return before
	}
	before := set(1000)
	v.Cleanup(func() { set(before) })
}

// plant makes a template of somebody else's and a machine that was cloned from one
// of ours: it has the same settings.
func (v *vcenter) plant() func() error {
	alien := v.add(types.VirtualMachineConfigSpec{Name: "foreign-template"})
	v.locked(alien, func() { alien.Config.Template = true })
	like := types.VirtualMachineConfigSpec{Name: "foreign-w1"}
	for _, kv := range [][2]string{{"imagectl", "1"}, {"name", "prod-worker"}, {"version", "4593.2.1-00000000"}, {"digest", "sha256:00"}} {
		like.ExtraConfig = append(like.ExtraConfig, &types.OptionValue{Key: "guestinfo.imagectl." + kv[0], Value: kv[1]})
	}
	clone := v.add(like)
	return func() error {
		for _, m := range []*simulator.VirtualMachine{alien, clone} {
			there := v.machine(m.Self.Value)
			if there == nil || !strings.HasPrefix(there.Name, "foreign-") {
				return fmt.Errorf("%s is gone or renamed", m.Self.Value)
			}
		}
		return nil
	}
}

func (v *vcenter) platform() uploadtest.Platform {
	var no atomic.Pointer[refusal]
	return uploadtest.Platform{
		Target: func(f *uploadtest.Faults) upload.Target {
			c := v.config()
			c.Transport = f.Transport(refusing{c.Transport, &no})
			return v.target(c)
		},
		Stranger: func() upload.Target {
			c := v.config()
			c.Password = "wrong"
			return v.target(c)
		},
		Leftovers:  func() ([]string, error) { return v.names(), nil },
		Unprovable: []string{"stored bytes"},
		Plant:      v.plant,
		Later: func(f *uploadtest.Faults) upload.Target {
			c := v.config()
			c.Transport = f.Transport(c.Transport)
			c.Now = func() time.Time { return time.Now().Add(25 * time.Hour) }
			return v.target(c)
		},
		Changed: func(f *uploadtest.Faults) upload.Target {
			c := v.config()
			c.Transport = f.Transport(refusing{c.Transport, &no})
			c.CPUs, c.MemoryMB, c.Firmware, c.Network, c.Node = 4, 8192, vsphere.BIOS, "DC0_DVPG0", []byte(`{"cluster":"prod","ca":"new"}`)
			return v.target(c)
		},
		Template: func() (string, error) { return v.describe("prod-worker"), nil },
		// base64 of {"cluster":"prod","ca":"new"}
		Options: []string{"template true, 4 CPUs, 8192 MB, bios;", "card in the DVPG", "node eyJjbHVzdGVyIjoicHJvZCIsImNhIjoibmV3In0=;"},
		Fill:    v.full,
		Quota:   func() { no.Store(limitExceeded()) },
		Use:     v.clone,
		Absent: map[uploadtest.Case]string{
			uploadtest.CalledOff: "the disk is sent by this process, under a lease that ends with it",
			uploadtest.Storm:     "nothing is sent again: vCenter says 500 for each refusal; the next run begins anew",
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	all := startVCenter(t, false)
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		p := all.fresh(t).platform()
		p.Slow = !everyFault
		return p
	})
}
