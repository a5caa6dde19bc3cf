package aws

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// ec2Version is the version of the API, which has been this one since 2016.
const ec2Version = "2016-11-15"

// tags are those of an image or a snapshot.
type tags []struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func (all tags) get(key string) string {
	for _, t := range all {
		if t.Key == key {
			return t.Value
		}
	}
	return ""
}

// label is a tag of the audit record.
func (all tags) label(key string) string { return all.get(tagOf(key)) }

// tagOf is the key of a tag. One key in a list of many says whose tags they are.
func tagOf(label string) string {
	if label == upload.LabelOurs {
		return label
	}
	return upload.LabelOurs + ":" + label
}

// tagUpload marks the snapshot of one upload.
const tagUpload = "upload"

// maxTag is how long a tag's value may be.
const maxTag = 256

func tagsOf(img upload.Image) map[string]string {
	out := map[string]string{"Name": imageName(img)}
	for k, v := range img.Audit() {
		out[tagOf(k)] = v[:min(len(v), maxTag)]
	}
	return out
}

func imageName(img upload.Image) string { return img.Name + "-" + img.Version }

// ami is an image of EC2, as far as it is used.
type ami struct {
	ID      string    `xml:"imageId"`
	Name    string    `xml:"name"`
	State   string    `xml:"imageState"`
	Created time.Time `xml:"creationDate"`
	Tags    tags      `xml:"tagSet>item"`
	Reason  string    `xml:"stateReason>message"`
	Disks   []struct {
		Snapshot string `xml:"ebs>snapshotId"`
	} `xml:"blockDeviceMapping>item"`
}

func (a ami) broken() bool { return slices.Contains([]string{"failed", "error", "invalid"}, a.State) }

func (a ami) uses(snapshot string) bool {
	for _, d := range a.Disks {
		if d.Snapshot == snapshot {
			return true
		}
	}
	return false
}

// snap is a snapshot.
type snap struct {
	ID      string    `xml:"snapshotId"`
	Status  string    `xml:"status"`
	Message string    `xml:"statusMessage"`
	Started time.Time `xml:"startTime"`
	SizeGiB int64     `xml:"volumeSize"`
	Tags    tags      `xml:"tagSet>item"`
}

// The states of a snapshot.
const (
	statePending   = "pending"
	stateCompleted = "completed"
	stateError     = "error"
)

// query calls EC2. What only asks may be asked twice.
func (t *Target) query(ctx context.Context, action string, params url.Values, into any) error {
	params = maps.Clone(params)
	params.Set("Action", action)
	params.Set("Version", ec2Version)
	a, err := t.call(ctx, ec2, "/", rest.Request{
		Method: http.MethodPost, Body: []byte(params.Encode()), Repeatable: !strings.HasPrefix(action, "Register"),
		Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"}},
	})
	if err != nil {
		return fmt.Errorf("calling EC2's %s: %w", action, err)
	}
	if into == nil {
		return nil
	}
	if err := xml.Unmarshal(a.Body, into); err != nil {
		return fmt.Errorf("calling EC2's %s: %w: its answer cannot be read: %w", action, upload.ErrServer, err)
	}
	return nil
}

// filters are name and value in turn.
func filters(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		n := strconv.Itoa(i/2 + 1)
		v.Set("Filter."+n+".Name", pairs[i])
		v.Set("Filter."+n+".Value.1", pairs[i+1])
	}
	return v
}

// ofFamily filters what is ours: of one family or, with an empty name, of all.
func ofFamily(name string) url.Values {
	if name == "" {
		return filters("tag:"+tagOf(upload.LabelOurs), "1")
	}
	return filters("tag:"+tagOf(upload.LabelOurs), "1", "tag:"+tagOf(upload.LabelName), name)
}

const pageSize = "1000"

// images are this account's that pass the filters, oldest first.
func (t *Target) images(ctx context.Context, params url.Values) ([]ami, error) {
	params.Set("Owner.1", "self")
	params.Set("MaxResults", pageSize)
	var all []ami
	for {
		var page struct {
			Images []ami  `xml:"imagesSet>item"`
			Next   string `xml:"nextToken"`
		}
		if err := t.query(ctx, "DescribeImages", params, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Images...)
		if page.Next == "" {
			break
		}
		params.Set("NextToken", page.Next)
	}
	slices.SortFunc(all, func(a, b ami) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// snapshots are this account's that pass the filters, oldest first.
func (t *Target) snapshots(ctx context.Context, params url.Values) ([]snap, error) {
	params.Set("Owner.1", "self")
	params.Set("MaxResults", pageSize)
	var all []snap
	for {
		var page struct {
			Snapshots []snap `xml:"snapshotSet>item"`
			Next      string `xml:"nextToken"`
		}
		if err := t.query(ctx, "DescribeSnapshots", params, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Snapshots...)
		if page.Next == "" {
			break
		}
		params.Set("NextToken", page.Next)
	}
	slices.SortFunc(all, func(a, b snap) int {
		return cmp.Or(a.Started.Compare(b.Started), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// image is one AMI; ErrNotFound when it is gone.
func (t *Target) image(ctx context.Context, id string) (ami, error) {
	// By a filter, for MaxResults and IDs exclude each other.
	all, err := t.images(ctx, filters("image-id", id))
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("looking for %s: %w", id, upload.ErrNotFound)
	}
	if err != nil {
		return ami{}, err
	}
	return all[0], nil
}

// register makes the AMI of a snapshot that is completed: UEFI, ENA and NVMe as
// current instance types have them, and the metadata service by session only.
func (t *Target) register(ctx context.Context, img upload.Image, snapshot string) (string, error) {
	const device = "/dev/xvda"
	v := url.Values{
		"Name": {imageName(img)}, "Description": {"imagectl " + imageName(img)}, "Architecture": {t.conf.Arch},
		"VirtualizationType": {"hvm"}, "BootMode": {"uefi-preferred"}, "EnaSupport": {"true"}, "ImdsSupport": {"v2.0"},
		"RootDeviceName":                  {device},
		"BlockDeviceMapping.1.DeviceName": {device}, "BlockDeviceMapping.1.Ebs.SnapshotId": {snapshot},
		"BlockDeviceMapping.1.Ebs.VolumeType": {"gp3"}, "BlockDeviceMapping.1.Ebs.DeleteOnTermination": {"true"},
		"TagSpecification.1.ResourceType": {"image"},
	}
	if t.conf.Arch == "arm64" {
		v.Set("BootMode", "uefi")
	}
	n := 0
	all := tagsOf(img)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		n++
		at := "TagSpecification.1.Tag." + strconv.Itoa(n)
		v.Set(at+".Key", k)
		v.Set(at+".Value", all[k])
	}
	var made struct {
		ID string `xml:"imageId"`
	}
	if err := t.query(ctx, "RegisterImage", v, &made); err != nil {
		return "", err
	}
	if made.ID == "" {
		return "", fmt.Errorf("registering %s: %w: the answer names no image", imageName(img), upload.ErrServer)
	}
	return made.ID, nil
}

// deregister removes an AMI, then its snapshots; what is gone is fine.
func (t *Target) deregister(ctx context.Context, a ami) error {
	if err := t.query(ctx, "DeregisterImage", url.Values{"ImageId": {a.ID}}, nil); err != nil && !errors.Is(err, upload.ErrNotFound) {
		return err
	}
	for _, d := range a.Disks {
		if d.Snapshot == "" {
			continue
		}
		if err := t.deleteSnapshot(ctx, d.Snapshot); err != nil {
			return err
		}
	}
	return nil
}

func (t *Target) deleteSnapshot(ctx context.Context, id string) error {
	err := t.query(ctx, "DeleteSnapshot", url.Values{"SnapshotId": {id}}, nil)
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	return err
}

// instances of an AMI that are not terminated.
func (t *Target) instances(ctx context.Context, image string) ([]string, error) {
	v := filters("image-id", image, "instance-state-name", statePending)
	for i, s := range []string{"running", "stopping", "stopped"} {
		v.Set("Filter.2.Value."+strconv.Itoa(i+2), s)
	}
	var page struct {
		IDs []string `xml:"reservationSet>item>instancesSet>item>instanceId"`
	}
	return page.IDs, t.query(ctx, "DescribeInstances", v, &page)
}
