package serverapi

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/store"
)

const (
	// maxDiffers bounds what is kept of how a machine's hardware differs, in sentences.
	maxDiffers = 16
	// memorySlack is what memory may differ by, as a part of it: kernels keep more or less of
	// it for themselves, and the smallest part that can go is a module. We believe that no
	// kernel's share changes by a thirty-second.
	memorySlack = 32
)

// restarted says whether an installed system tells of its hardware for the first time since it
// was started. Only then is it compared: nothing of Kubernetes runs yet, which plugs in disks
// and cards of its own.
func restarted(m store.Machine, r *api.SyncRequest) bool {
	f := r.GetFacts()
	return r.GetMode() == api.Mode_MODE_NODE && r.GetBootId() != "" && r.GetBootId() != m.HardwareBoot && len(m.Facts) > 0 && len(f.GetInterfaces())+len(f.GetDisks()) > 0
}

// keepHardware has a machine's hardware as it is now that it was installed; the log has how it
// was other before.
func (c *change) keepHardware(m *store.Machine, now *api.Facts) {
	b, err := protojson.Marshal(now)
	if err != nil || len(now.GetInterfaces())+len(now.GetDisks()) == 0 {
		return
	}
	if !m.InstalledAt.IsZero() && len(m.Facts) > 0 {
		c.compareHardware(m, now, m.HardwareBoot)
	}
	m.Facts, m.Hardware = b, nil
}

// compareHardware notes how a machine differs from what it was when it was installed. Nothing
// is done about it: a person looks.
func (c *change) compareHardware(m *store.Machine, now *api.Facts, boot string) {
	m.HardwareBoot = boot
	differs := differences(factsOf(*m), now)
	if slices.Equal(differs, m.Hardware) {
		return
	}
	detail := "it is as it was when it was installed"
	if len(differs) > 0 {
		detail = strings.Join(differs, "; ")
	}
	c.log(audit.Entry{Action: "hardware-changed", Machine: m.Name, Before: string(m.State), After: string(m.State), Detail: words(detail)})
	m.Hardware = differs
}

// differences are sentences on what of a machine is other than it was; none for the same
// hardware. What either side does not know is not compared, nor what can be pulled out.
func differences(was, is *api.Facts) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, words(fmt.Sprintf(format, args...))) }
	for _, v := range []struct{ what, was, is string }{
		{"UUID", was.GetUuid(), is.GetUuid()}, {"serial number", was.GetSerial(), is.GetSerial()}, {"product", was.GetProduct(), is.GetProduct()},
	} {
		if v.was != "" && v.is != "" && v.was != v.is {
			add("its %s was %q and is %q", v.what, v.was, v.is)
		}
	}
	if a, b := was.GetCpus(), is.GetCpus(); a != 0 && b != 0 && a != b {
		add("it had %d processors and has %d", a, b)
	}
	if a, b := was.GetMemoryBytes(), is.GetMemoryBytes(); a != 0 && b != 0 && max(a, b)-min(a, b) > max(a, b)/memorySlack {
		add("it had %d MiB of memory and has %d", a>>20, b>>20)
	}
	cards := func(f *api.Facts) map[string]string {
		all := map[string]string{}
		for _, i := range f.GetInterfaces() {
			if i.GetMac() != "" {
				all[i.GetMac()] = fmt.Sprintf("network card %s (%q)", i.GetMac(), i.GetName())
			}
		}
		return all
	}
	disks := func(f *api.Facts) map[string]string {
		all := map[string]string{}
		for _, d := range f.GetDisks() {
			// A name that the kernel gave tells least: it may be another disk's after a start.
			key := d.GetWwn()
			if key == "" && d.GetSerial() != "" {
				key = d.GetModel() + " " + d.GetSerial()
			}
			if key == "" {
				key = d.GetPath()
			}
			if !d.GetRemovable() {
				all[fmt.Sprintf("%s %d", key, d.GetSizeBytes())] = fmt.Sprintf("disk %q (%q, serial %q, WWN %q, %d MiB)", d.GetPath(), d.GetModel(), d.GetSerial(), d.GetWwn(), d.GetSizeBytes()>>20)
			}
		}
		return all
	}
	for _, kind := range []struct{ was, is map[string]string }{{cards(was), cards(is)}, {disks(was), disks(is)}} {
		if len(kind.was) == 0 {
			continue // it never said
		}
		out = append(out, missing(kind.was, kind.is, "is gone")...)
		out = append(out, missing(kind.is, kind.was, "is new")...)
	}
	if n := len(out); n > maxDiffers {
		out = append(out[:maxDiffers-1], fmt.Sprintf("and %d more", n-maxDiffers+1))
	}
	return out
}

// missing are those of some that others have not, in the order of their keys.
func missing(some, others map[string]string, what string) []string {
	var keys, out []string
	for k := range some {
		if _, ok := others[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		out = append(out, words(some[k])+" "+what)
	}
	return out
}

// hardwareNotes are for "imagectl status".
func (s *Server) hardwareNotes() []string {
	var out []string
	for _, m := range s.records() {
		if len(m.Hardware) > 0 {
			out = append(out, fmt.Sprintf("warning: %s is not as it was when it was installed: %s", m.Name, strings.Join(m.Hardware, "; ")))
		}
	}
	return out
}
