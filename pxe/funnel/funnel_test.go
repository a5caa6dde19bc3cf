package funnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/pxe/boot"
)

var start = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

// at is an event some seconds after start.
func at(seconds int, stage boot.Stage) boot.Event {
	return boot.Event{At: start.Add(time.Duration(seconds) * time.Second), Stage: stage, Name: "cp1"}
}

func rom(e boot.Event) boot.Event { e.Firmware = true; return e }

func says(e boot.Event, a boot.Action) boot.Event { e.Action = a; return e }

func no(e boot.Event, code string) boot.Event {
	e.Refusal = boot.Refusal{Code: code, Reason: "because " + code}
	return e
}

func TestBootsAreToldApart(t *testing.T) {
	t.Parallel()
	const (
		dhcp, nbp, script, kernel      = boot.StageDHCP, boot.StageNBP, boot.StageScript, boot.StageKernel
		initrd, ignition, enrolled     = boot.StageInitrd, boot.StageIgnition, boot.StageEnrolled
		install, local, discover, none = boot.Install, boot.Local, boot.Discover, boot.None
	)
	toScript := []boot.Event{rom(at(0, dhcp)), rom(at(1, dhcp)), at(2, nbp), at(3, nbp), at(5, dhcp), at(6, dhcp)}
	installing := append(toScript[:len(toScript):len(toScript)], says(at(7, script), install), at(8, kernel), at(10, initrd), at(40, ignition))
	handedBack := append(toScript[:len(toScript):len(toScript)], no(says(at(7, script), local), "not-armed"))
	for _, tt := range []struct {
		name   string
		events []boot.Event
		// began is in seconds after start.
		began   int
		stage   boot.Stage
		over    bool
		refusal string
		took    map[boot.Stage]time.Duration
	}{
		{"never seen", nil, 0, "", false, "", nil},
		{"a ROM repeats its request", []boot.Event{rom(at(0, dhcp)), rom(at(4, dhcp)), rom(at(12, dhcp))}, 0, dhcp, false, "", nil},
		{"UEFI asks for the size first, then iPXE asks DHCP", toScript, 0, nbp, false, "", map[boot.Stage]time.Duration{nbp: 2 * time.Second}},
		{"the whole way", append(installing[:len(installing):len(installing)], at(100, enrolled)), 0, enrolled, true, "",
			map[boot.Stage]time.Duration{nbp: 2 * time.Second, script: 5 * time.Second, kernel: time.Second, initrd: 2 * time.Second, ignition: 30 * time.Second, enrolled: time.Minute}},
		{"iPXE in the card's ROM", []boot.Event{at(0, dhcp), at(1, dhcp), says(at(2, script), install)}, 0, script, false, "", map[boot.Stage]time.Duration{script: 2 * time.Second}},
		{"its own disk", handedBack, 0, script, true, "not-armed", map[boot.Stage]time.Duration{nbp: 2 * time.Second, script: 5 * time.Second}},
		{"what the firmware tries after iPXE handed back is no news", append(handedBack[:len(handedBack):len(handedBack)], no(rom(at(20, dhcp)), "http-boot")),
			0, script, true, "not-armed", map[boot.Stage]time.Duration{nbp: 2 * time.Second, script: 5 * time.Second}},
		{"nor is that HTTP boot sends it to its disk once more", append(handedBack[:len(handedBack):len(handedBack)], says(rom(at(20, dhcp)), local), no(says(rom(at(22, script)), local), "not-armed")),
			0, script, true, "not-armed", map[boot.Stage]time.Duration{nbp: 2 * time.Second, script: 5 * time.Second}},
		{"HTTP boot alone sends it to its disk", []boot.Event{says(rom(at(0, dhcp)), local), no(says(rom(at(4, script)), local), "not-armed")},
			0, script, true, "not-armed", map[boot.Stage]time.Duration{script: 4 * time.Second}},
		{"HTTP boot of the whole installer", []boot.Event{says(rom(at(0, dhcp)), install), says(rom(at(4, kernel)), install), at(9, ignition)},
			0, ignition, false, "", map[boot.Stage]time.Duration{kernel: 4 * time.Second, ignition: 5 * time.Second}},
		{"armed since, HTTP boot starts anew", append(handedBack[:len(handedBack):len(handedBack)], says(rom(at(20, dhcp)), install)), 20, dhcp, false, "not-armed", nil},
		{"minutes later it is", append(handedBack[:len(handedBack):len(handedBack)], no(rom(at(400, dhcp)), "pool-exhausted")),
			0, script, true, "pool-exhausted", map[boot.Stage]time.Duration{nbp: 2 * time.Second, script: 5 * time.Second}},
		{"the next start", append(installing[:len(installing):len(installing)], rom(at(60, dhcp)), at(61, nbp)), 60, nbp, false, "", map[boot.Stage]time.Duration{nbp: time.Second}},
		{"the next start of iPXE in the card's ROM", append(handedBack[:len(handedBack):len(handedBack)], at(60, dhcp)), 60, dhcp, false, "not-armed", nil},
		{"switched off after TFTP", append(toScript[:len(toScript):len(toScript)], rom(at(30, dhcp))), 30, dhcp, false, "", nil},
		{"waiting in the setup", []boot.Event{rom(at(0, dhcp)), rom(at(600, dhcp))}, 600, dhcp, false, "", nil},
		{"refused from the start", []boot.Event{no(rom(at(0, dhcp)), "arch-unsupported")}, 0, dhcp, false, "arch-unsupported", nil},
		{"HTTP boot is tried before PXE", []boot.Event{no(rom(at(0, dhcp)), "http-boot"), rom(at(9, dhcp)), at(10, nbp)}, 0, nbp, false, "http-boot", map[boot.Stage]time.Duration{nbp: 10 * time.Second}},
		{"a busy server does not take it further", append(toScript[:len(toScript):len(toScript)], says(at(7, script), install), no(at(8, kernel), "overloaded")),
			0, script, false, "overloaded", map[boot.Stage]time.Duration{nbp: 2 * time.Second, script: 5 * time.Second}},
		{"a retry does not take it back", append(installing[:len(installing):len(installing)], at(41, kernel)), 0, ignition, false, "",
			map[boot.Stage]time.Duration{nbp: 2 * time.Second, script: 5 * time.Second, kernel: time.Second, initrd: 2 * time.Second, ignition: 30 * time.Second}},
		{"armed while it asks again and again", []boot.Event{at(0, dhcp), no(says(at(1, script), none), "conflict"), says(at(2, script), discover)}, 2, script, false, "conflict", nil},
		{"an installed system renews its certificate", append(handedBack[:len(handedBack):len(handedBack)], at(3600, enrolled)), 0, script, true, "not-armed",
			map[boot.Stage]time.Duration{nbp: 2 * time.Second, script: 5 * time.Second}},
		{"nobody saw it start", []boot.Event{at(9, enrolled)}, 0, "", false, "", nil},
		{"the server started in the middle", []boot.Event{at(8, kernel), at(9, initrd)}, 8, initrd, false, "", map[boot.Stage]time.Duration{initrd: time.Second}},
		{"another DHCP server, our TFTP", []boot.Event{at(0, nbp), says(at(1, script), local), at(60, nbp)}, 60, nbp, false, "", nil},
		{"a clock that was set back", []boot.Event{at(10, dhcp), says(at(4, script), install)}, 10, script, false, "", map[boot.Stage]time.Duration{script: 0}},
	} {
		var b Boot
		var took map[boot.Stage]time.Duration
		for _, e := range tt.events {
			before := fmt.Sprint(b)
			next, s := b.Next(e)
			switch {
			case s.Timed && took == nil:
				took = map[boot.Stage]time.Duration{s.To: s.Took}
			case s.Timed:
				took[s.To] = s.Took
			case s.To != "":
				took = nil // another boot
			}
			if fmt.Sprint(b) != before {
				t.Fatalf("%s: Next changed its receiver", tt.name)
			}
			b = next
		}
		if b.Stage != tt.stage || b.Over() != tt.over || b.Refusal.Code != tt.refusal || (b.Stage != "" && !b.Began.Equal(start.Add(time.Duration(tt.began)*time.Second))) {
			t.Errorf("%s: began %v, stage %q, over %v, refusal %q; want %ds, %q, %v, %q", tt.name, b.Began.Sub(start), b.Stage, b.Over(), b.Refusal.Code, tt.began, tt.stage, tt.over, tt.refusal)
		}
		if diff := cmp.Diff(tt.took, took); diff != "" {
			t.Errorf("%s: times (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestStepsSayWhatIsNews(t *testing.T) {
	t.Parallel()
	var b Boot
	for i, tt := range []struct {
		e    boot.Event
		want Step
	}{
		{rom(at(0, boot.StageDHCP)), Step{To: boot.StageDHCP, News: true}},
		{rom(at(1, boot.StageDHCP)), Step{}},
		{no(at(2, boot.StageDHCP), "overloaded"), Step{News: true}},
		{no(at(3, boot.StageDHCP), "overloaded"), Step{}},
		{at(4, boot.StageNBP), Step{To: boot.StageNBP, Took: 4 * time.Second, Timed: true, News: true}},
		{says(at(5, boot.StageScript), boot.Discover), Step{To: boot.StageScript, Took: time.Second, Timed: true, News: true}},
		{says(at(6, boot.StageScript), boot.Discover), Step{}},
		{says(at(7, boot.StageScript), boot.Install), Step{News: true}},
	} {
		var got Step
		if b, got = b.Next(tt.e); got != tt.want {
			t.Errorf("event %d: got %+v, want %+v", i, got, tt.want)
		}
	}
}

func mac(n int) net.HardwareAddr {
	return binary.BigEndian.AppendUint32([]byte{2, 0}, uint32(n))
}

func TestStrangersAreBounded(t *testing.T) {
	t.Parallel()
	f := New([]string{"cp1", "w1"})
	f.Record(at(0, boot.StageDHCP))
	for i := range 4 * maxUnlisted {
		e := at(i, boot.StageDHCP)
		e.Name, e.Machine.MAC = "", mac(i)
		f.Record(e)
		e.Machine.MAC = mac(0) // asks all the time
		f.Record(e)
	}
	f.Record(boot.Event{At: start, Stage: boot.StageNBP})
	if !f.Follows(mac(0)) || f.Follows(mac(1)) || f.Follows(nil) {
		t.Error("it follows others than those that ask")
	}
	got := f.Machines()
	if len(got) != 2+maxUnlisted || got[0].Name != "cp1" || got[1].Name != "w1" || got[2].MAC.String() != mac(0).String() {
		t.Errorf("%d machines, the first are %v", len(got), got[:3])
	}
	if got[0].Reached != (Counts{1}) || got[1].Reached != (Counts{}) || f.Strangers() != (Counts{4 * maxUnlisted}) {
		t.Errorf("stages were reached %v and %v times, by strangers %v", got[0].Reached, got[1].Reached, f.Strangers())
	}
	if len(Counts{}) != len(boot.Stages()) {
		t.Errorf("there are %d stages", len(boot.Stages()))
	}
	if got[0].Boot.Stage != boot.StageDHCP || got[1].Boot.Stage != "" {
		t.Errorf("cp1 %q, w1 %q", got[0].Boot.Stage, got[1].Boot.Stage)
	}
	if last := got[len(got)-1].MAC.String(); last != mac(4*maxUnlisted-1).String() {
		t.Errorf("the newest is %s", last)
	}
}
