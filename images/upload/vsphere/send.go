package vsphere

import (
	"context"
	"crypto/sha1" //nolint:gosec // What vCenter says of the bytes that arrived.
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/upload"
)

// nodeProperty of the OVF is where the agent looks for its server
// (bootstrap/platform); networkOfOVF is what it calls its only network.
const (
	nodeProperty = "guestinfo.imagectl.node"
	networkOfOVF = "VM Network"
)

// importSpec has vCenter read the OVF, and changes what the configuration says.
func (t *Target) importSpec(ctx context.Context, s *session, img upload.Image, src source, name string) (*types.VirtualMachineImportSpec, types.OvfFileItem, error) {
	fail := func(err error) (*types.VirtualMachineImportSpec, types.OvfFileItem, error) {
		return nil, types.OvfFileItem{}, failed(ctx, "having vCenter read the OVF", err)
	}
	params := types.OvfCreateImportSpecParams{
		EntityName: name, HostSystem: s.host, DiskProvisioning: string(types.OvfCreateImportSpecParamsDiskProvisioningTypeThin),
		NetworkMapping: []types.OvfNetworkMapping{{Name: networkOfOVF, Network: s.network}},
	}
	if len(t.Node) > 0 {
		params.PropertyMapping = []types.KeyValue{{Key: nodeProperty, Value: base64.StdEncoding.EncodeToString(t.Node)}}
	}
	answer, err := methods.CreateImportSpec(ctx, s, &types.CreateImportSpec{
		This: *s.ServiceContent.OvfManager, OvfDescriptor: src.descriptor, ResourcePool: s.pool, Datastore: s.datastore, Cisp: &params,
	})
	if err != nil {
		return fail(err)
	}
	result := answer.Returnval
	for _, f := range result.Error {
		return fail(refused(&f))
	}
	spec, is := result.ImportSpec.(*types.VirtualMachineImportSpec)
	if !is || len(result.FileItem) != 1 {
		return fail(fmt.Errorf("%w: it makes a %T with %d files of one machine with one disk", upload.ErrServer, result.ImportSpec, len(result.FileItem)))
	}
	c := &spec.ConfigSpec
	c.NumCPUs, c.MemoryMB, c.Firmware = int32(t.CPUs), int64(t.MemoryMB), string(t.Firmware)
	c.ExtraConfig = append(c.ExtraConfig, t.record(img, t.Now())...)
	c.Annotation = annotation(img)
	return spec, result.FileItem[0], nil
}

// annotation is what people see.
func annotation(img upload.Image) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Flatcar image %s of %s, by imagectl\n", img.Version, img.Name)
	audit := img.Audit()
	for _, k := range slices.Sorted(maps.Keys(audit)) {
		fmt.Fprintf(&b, "%s: %s\n", k, audit[k])
	}
	return b.String()
}

// importMachine makes a machine of a name and fills its disk. It is whole when this
// returns without an error.
func (t *Target) importMachine(ctx context.Context, s *session, img upload.Image, name string, made func(types.ManagedObjectReference) error, ev upload.Events) (types.ManagedObjectReference, error) {
	var none types.ManagedObjectReference
	src, err := newSource(img)
	if err != nil {
		return none, err
	}
	spec, item, err := t.importSpec(ctx, s, img, src, name)
	if err != nil {
		return none, err
	}
	answer, err := methods.ImportVApp(ctx, s, &types.ImportVApp{This: s.pool, Spec: spec, Folder: &s.folder, Host: s.host})
	if err != nil {
		return none, failed(ctx, "importing "+name, err)
	}
	lease := answer.Returnval
	info, err := t.ready(ctx, s, lease)
	if err != nil {
		return none, failed(ctx, "waiting for the lease of "+name, err)
	}
	if err := made(info.Entity); err != nil {
		return none, err
	}
	if err := t.fill(ctx, s, lease, info, img, src, item, ev); err != nil {
		t.abort(ctx, s, lease)
		return none, fmt.Errorf("sending the disk of %s: %w", name, err)
	}
	if _, err := methods.HttpNfcLeaseComplete(ctx, s, &types.HttpNfcLeaseComplete{This: lease}); err != nil {
		return none, failed(ctx, "ending the import of "+name, err)
	}
	return info.Entity, nil
}

// ready waits until vCenter has made the machine and a host waits for the disk.
func (t *Target) ready(ctx context.Context, s *session, lease types.ManagedObjectReference) (*types.HttpNfcLeaseInfo, error) {
	for {
		p, err := s.properties(ctx, lease, "state", "info", "error")
		if err != nil {
			return nil, err
		}
		switch state, _ := p["state"].(types.HttpNfcLeaseState); state {
		case types.HttpNfcLeaseStateReady:
			if info, is := p["info"].(types.HttpNfcLeaseInfo); is {
				return &info, nil
			}
			return nil, fmt.Errorf("%w: the lease says nothing of itself", upload.ErrServer)
		case types.HttpNfcLeaseStateInitializing:
		default:
			if f, is := p["error"].(types.LocalizedMethodFault); is && f.Fault != nil {
				return nil, refused(&f)
			}
			return nil, fmt.Errorf("%w: the lease is %q", upload.ErrServer, state)
		}
		if err := t.Wait(ctx); err != nil {
			return nil, err
		}
	}
}

// abort has vCenter remove the half machine now, and not when the lease ends.
func (t *Target) abort(ctx context.Context, s *session, lease types.ManagedObjectReference) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
	defer cancel()
	_, _ = methods.HttpNfcLeaseAbort(ctx, s, &types.HttpNfcLeaseAbort{This: lease})
}

// fill sends the disk and compares what vCenter says of it.
func (t *Target) fill(ctx context.Context, s *session, lease types.ManagedObjectReference, info *types.HttpNfcLeaseInfo, img upload.Image, src source, item types.OvfFileItem, ev upload.Events) error {
	i := slices.IndexFunc(info.DeviceUrl, func(d types.HttpNfcLeaseDeviceUrl) bool { return d.ImportKey == item.DeviceId })
	if i < 0 {
		return fmt.Errorf("%w: the lease has no place for %s", upload.ErrServer, item.DeviceId)
	}
	device := info.DeviceUrl[i]
	var sent atomic.Int64
	body := &counted{r: src.disk(img), tell: func(n int) {
		ev(upload.Event{Phase: "sending", Done: sent.Add(int64(n)), Total: src.size})
	}}
	sum := sha1.New() //nolint:gosec // See the import.
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return upload.Sum(gctx, sum, src.disk(img)) })
	group.Go(func() error {
		return alive(gctx, t.Beat, func(ctx context.Context) error {
			percent := min(int32(100*sent.Load()/src.size), 100)
			_, err := methods.HttpNfcLeaseProgress(ctx, s, &types.HttpNfcLeaseProgress{This: lease, Percent: percent})
			return failed(ctx, "keeping the lease alive", err)
		}, func(ctx context.Context) error { return t.post(ctx, s, device, item, body, src.size) })
	})
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			// Computing may have noticed it first.
			err = upload.CallError(ctx, err)
		}
		return err
	}
	return compareManifest(ctx, s, lease, device.Key, src.size, hex.EncodeToString(sum.Sum(nil)), ev)
}

// post sends the disk to the host that vCenter named.
func (t *Target) post(ctx context.Context, s *session, device types.HttpNfcLeaseDeviceUrl, item types.OvfFileItem, body io.Reader, size int64) error {
	// A host without a name of its own calls itself "*".
	u, err := s.ParseURL(device.Url)
	if err != nil {
		return fmt.Errorf("%w: the lease names the place %q: %w", upload.ErrServer, device.Url, err)
	}
	if device.SslThumbprint != "" && t.Trust != nil {
		if err := t.Trust(u.Host, device.SslThumbprint); err != nil {
			return err
		}
	}
	method := http.MethodPost
	if item.Create {
		method = http.MethodPut
	}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return fmt.Errorf("sending to %s: %w", u.Host, err)
	}
	r.ContentLength = size
	r.Header.Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	if item.Create {
		r.Header.Set("Overwrite", "t")
	}
	resp, err := s.Client.Client.Client.Do(r)
	if err != nil {
		return fmt.Errorf("sending to %s: %w", u.Host, upload.CallError(ctx, err))
	}
	defer resp.Body.Close()
	const most = 500
	text, _ := io.ReadAll(io.LimitReader(resp.Body, most))
	if err := upload.StatusError(resp.StatusCode, strings.Join(strings.Fields(string(text)), " ")); err != nil {
		return fmt.Errorf("sending to %s: %w", u.Host, err)
	}
	return nil
}

// compareManifest asks for size and SHA-1 of what arrived. vCenter need not say it.
func compareManifest(ctx context.Context, s *session, lease types.ManagedObjectReference, key string, size int64, sum string, ev upload.Events) error {
	answer, err := methods.HttpNfcLeaseGetManifest(ctx, s, &types.HttpNfcLeaseGetManifest{This: lease})
	if err != nil {
		return failed(ctx, "asking what arrived", err)
	}
	for _, e := range answer.Returnval {
		if e.Key != key {
			continue
		}
		if e.Size != size || e.Sha1 != "" && !strings.EqualFold(e.Sha1, sum) {
			return fmt.Errorf("comparing what arrived: %w: vCenter has %d bytes with SHA-1 %s, and sent were %d with %s", upload.ErrServer, e.Size, e.Sha1, size, sum)
		}
		return nil
	}
	ev(upload.Event{Phase: "sending", Note: "vCenter does not say what arrived: the disk was not compared"})
	return nil
}

// counted tells of bytes as they are read.
type counted struct {
	r    io.Reader
	tell func(int)
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 {
		c.tell(n)
	}
	return n, err
}
