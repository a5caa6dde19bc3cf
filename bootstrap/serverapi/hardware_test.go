package serverapi

import (
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func TestHowHardwareDiffers(t *testing.T) {
	t.Parallel()
	facts := func(change func(*api.Facts)) *api.Facts {
		f := &api.Facts{
			Uuid: "u-1", Serial: "SN1", Product: "R1", Cpus: 32, MemoryBytes: 128 << 30,
			Interfaces: []*api.NetworkInterface{{Name: "eno1", Mac: "52:54:00:00:00:01"}, {Name: "eno2", Mac: "52:54:00:00:00:02"}},
			Disks: []*api.Disk{
				{Path: "/dev/nvme0n1", SizeBytes: 1 << 40, Serial: "A", Model: "M", Wwn: "eui.1"}, {Path: "/dev/sda", SizeBytes: 2 << 40, Serial: "B", Model: "M"},
				{Path: "/dev/vda", SizeBytes: 8 << 30}, {Path: "/dev/sdz", SizeBytes: 1 << 30, Removable: true},
			},
		}
		change(f)
		return f
	}
	was := facts(func(*api.Facts) {})
	for _, c := range []struct {
		name string
		is   *api.Facts
		want []string
	}{
		{"the same", facts(func(*api.Facts) {}), nil},
		{"it says nothing", &api.Facts{}, []string{
			`network card 52:54:00:00:00:01 ("eno1") is gone`, `network card 52:54:00:00:00:02 ("eno2") is gone`,
			`disk "/dev/vda" ("", serial "", WWN "", 8192 MiB) is gone`, `disk "/dev/sda" ("M", serial "B", WWN "", 2097152 MiB) is gone`, `disk "/dev/nvme0n1" ("M", serial "A", WWN "eui.1", 1048576 MiB) is gone`,
		}},
		{"other names, and what is put in and out", facts(func(f *api.Facts) {
			f.Interfaces[0].Name, f.Disks[0].Path, f.Disks[1].Path, f.Kernel = "eth0", "/dev/nvme9n1", "/dev/sdb", "7.0"
			f.Disks = f.Disks[:3]
		}), nil},
		{"a kernel that keeps more for itself", facts(func(f *api.Facts) { f.MemoryBytes -= 2 << 30 }), nil},
		{"a memory module is gone", facts(func(f *api.Facts) { f.MemoryBytes -= 8 << 30 }), []string{"it had 131072 MiB of memory and has 122880"}},
		{"another mainboard", facts(func(f *api.Facts) { f.Uuid, f.Serial, f.Product, f.Cpus = "u-2", "SN2", "R2", 16 }), []string{
			`its UUID was "u-1" and is "u-2"`, `its serial number was "SN1" and is "SN2"`, `its product was "R1" and is "R2"`, "it had 32 processors and has 16",
		}},
		{"another card", facts(func(f *api.Facts) { f.Interfaces[1].Mac = "52:54:00:00:00:99" }), []string{
			`network card 52:54:00:00:00:02 ("eno2") is gone`, `network card 52:54:00:00:00:99 ("eno2") is new`,
		}},
		{"another disk in its place", facts(func(f *api.Facts) { f.Disks[0].Wwn, f.Disks[0].Serial = "eui.2", "C" }), []string{
			`disk "/dev/nvme0n1" ("M", serial "A", WWN "eui.1", 1048576 MiB) is gone`, `disk "/dev/nvme0n1" ("M", serial "C", WWN "eui.2", 1048576 MiB) is new`,
		}},
		{"a disk of another size, without a name of its own", facts(func(f *api.Facts) { f.Disks[2].SizeBytes = 4 << 30 }), []string{
			`disk "/dev/vda" ("", serial "", WWN "", 8192 MiB) is gone`, `disk "/dev/vda" ("", serial "", WWN "", 4096 MiB) is new`,
		}},
	} {
		if got := differences(was, c.is); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
	many := facts(func(f *api.Facts) {
		for range 100 {
			f.Disks = append(f.Disks, &api.Disk{Path: "/dev/x", Wwn: strings.Repeat("w", 1+len(f.Disks)), SizeBytes: 1})
		}
	})
	if got := differences(was, many); len(got) != maxDiffers || got[maxDiffers-1] != "and 85 more" {
		t.Errorf("100 new disks are said in %d sentences, the last %q", len(got), got[len(got)-1])
	}
}

// What a node finds of its hardware at each start is compared with what it was installed with, and
// that is said and recorded; nothing else comes of it.
func TestAMachineWithOtherHardwareIsTold(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	f := r.member("w1", "52:54:00:00:00:02")
	report := func(boot string, facts *api.Facts) {
		f.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE, BootId: boot, Facts: facts})
	}
	same := func() *api.Facts {
		return &api.Facts{Interfaces: []*api.NetworkInterface{{Name: "eth0", Mac: "52:54:00:00:00:02"}}, Cpus: 2}
	}
	other := same()
	other.Interfaces = append(other.Interfaces, &api.NetworkInterface{Name: "eth1", Mac: "52:54:00:00:00:77"})
	const asWas = "it is as it was when it was installed"
	const sentence = `network card 52:54:00:00:00:77 ("eth1") is new`
	expect := func(when string, warned bool, entries ...string) {
		t.Helper()
		if got := strings.Contains(r.allNotes(), "warning: w1 is not as it was when it was installed: "+sentence); got != warned {
			t.Errorf("%s: warned: %v, want %v; status says %s", when, got, warned, r.allNotes())
		}
		var got []string
		for _, e := range r.audited("hardware-changed") {
			if e.Machine != "w1" || e.Before != e.After {
				t.Errorf("%s: %+v", when, e)
			}
			got = append(got, e.Detail)
		}
		if !slices.Equal(got, entries) {
			t.Errorf("%s: the log has %q, want %q", when, got, entries)
		}
	}
	report("b1", same())
	expect("the same hardware", false)
	report("b1", other)
	expect("what is plugged in later in a boot is Kubernetes' or a person's", false)
	report("b2", other)
	expect("after a restart", true, sentence)
	report("b2", same())
	report("b3", other)
	expect("once for the same", true, sentence)
	report("b4", nil)
	expect("a report without facts", true, sentence)
	report("b5", same())
	expect("it was taken out again", false, sentence, asWas)
	report("b6", other)
	expect("and put in again", true, sentence, asWas, sentence)
	r.arm("w1", true)
	f.sync(installer())
	done := installer()
	done.Installed, done.Facts = true, other
	f.sync(done)
	expect("installed anew: what it has now is what counts", false, sentence, asWas, sentence)
	report("b7", other)
	expect("and runs", false, sentence, asWas, sentence)
}
