package libvirt

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/imagectl/imagectl/images/upload"
)

const (
	// abandoned is how long a volume without a domain lies still before it is broken.
	abandoned = 24 * time.Hour
	// volumePrefix is of the ID of such a volume, which is no domain's name.
	volumePrefix = "volume/"
)

// volumeForm is the name of an upload's volume: FAMILY_VERSION, what makes it the
// upload's own, and the format.
var volumeForm = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*)_([0-9][A-Za-z0-9.-]*-([0-9a-f]{8}))\.[0-9a-f]{8}\.(qcow2|raw)$`)

// lostVolume tells of a volume that an upload made and that no domain of ours has, if it
// was not written for a day. A volume that does not say when is nobody's to judge.
func lostVolume(name, mtime string, mine []*known, pool string, now time.Time) (upload.Object, bool) {
	m := volumeForm.FindStringSubmatch(name)
	at, dated := parseTime(mtime)
	if m == nil || !dated || now.Sub(at) < abandoned || slices.ContainsFunc(mine, func(k *known) bool { return k.Pool == pool && k.Volume == name }) {
		return upload.Object{}, false
	}
	return upload.Object{ID: volumePrefix + name, Name: m[1], Version: m[2], Digest: m[3], Broken: true, Created: at, State: "volume without a domain"}, true
}

// parseTime reads libvirt's SECONDS.NANOSECONDS.
func parseTime(text string) (time.Time, bool) {
	whole, _, _ := strings.Cut(text, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	return time.Unix(n, 0).UTC(), err == nil && n > 0
}

// lost are such volumes of the pool, of a family or of all.
func (s *session) lost(mine []*known, family string, now time.Time) ([]upload.Object, error) {
	all, _, err := s.StoragePoolListAllVolumes(s.pool, 1, 0)
	if err != nil {
		return nil, failed(s.ctx, "listing the volumes of "+s.pool.Name, err)
	}
	var out []upload.Object
	for _, v := range all {
		if !volumeForm.MatchString(v.Name) || slices.ContainsFunc(mine, func(k *known) bool { return k.Pool == s.pool.Name && k.Volume == v.Name }) {
			continue
		}
		text, err := s.StorageVolGetXMLDesc(v, 0)
		if none(err, libvirt.ErrNoStorageVol) {
			continue
		}
		if err != nil {
			return nil, failed(s.ctx, "reading the volume "+v.Name, err)
		}
		var x libvirtxml.StorageVolume
		if err := x.Unmarshal(text); err != nil {
			return nil, fmt.Errorf("reading the volume %s: %w", v.Name, err)
		}
		mtime := ""
		if x.Target != nil && x.Target.Timestamps != nil {
			mtime = x.Target.Timestamps.Mtime
		}
		if o, is := lostVolume(v.Name, mtime, mine, s.pool.Name, now); is && (family == "" || o.Name == family) {
			out = append(out, o)
		}
	}
	return out, nil
}

// deleteLost removes such a volume, unless something lies on it.
func (s *session) deleteLost(name string, now time.Time) error {
	mine, err := s.domains()
	if err != nil {
		return err
	}
	all, err := s.lost(mine, "", now)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(o upload.Object) bool { return o.ID == volumePrefix+name }) {
		return fmt.Errorf("deleting the volume %s: %w, or it is none that an upload left a day ago", name, upload.ErrNotFound)
	}
	vol, err := s.StorageVolLookupByName(s.pool, name)
	if err != nil {
		return failed(s.ctx, "looking for the volume "+name, err)
	}
	nobody := &known{metadata: metadata{Pool: s.pool.Name, Volume: name}}
	if user, err := s.user(nobody, vol); err != nil {
		return err
	} else if user != "" {
		return fmt.Errorf("deleting the volume %s: %w: %s has it", name, upload.ErrInUse, user)
	}
	return s.remove(name)
}
