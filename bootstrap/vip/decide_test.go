package vip

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Every combination of what a decision follows from keeps to these.
func TestDecisionsKeepToTheRules(t *testing.T) {
	now := time.Unix(1000, 0)
	n := 0
	for bits := range 64 {
		bit := func(i int) bool { return bits>>i&1 == 1 }
		for _, others := range []int{0, 1, 2} {
			for _, left := range []time.Duration{-time.Hour, -1, 0, margin - 1, margin, margin + 1, TTL} {
				n++
				v := View{Wanted: bit(0), Ready: bit(1), Stopping: bit(2), Holding: bit(3), Standing: Standing{In: bit(4), First: bit(5), Others: others, Until: now.Add(left)}}
				d := Decide(v, now)
				for _, rule := range []struct {
					broken bool
					name   string
				}{
					{d.Hold && d.Drop, "never both"},
					{d.Drop && !v.Holding, "what is not there is not dropped"},
					{v.Holding && !d.Hold && !d.Drop, "what is there is either kept or dropped"},
					{d.Hold && !(v.Standing.In && v.Standing.First), "only the first in the queue"},
					{d.Hold && left <= margin, "never when the lease may be about to end"},
					{d.Hold && (v.Stopping || !v.Wanted), "only while it is wanted"},
					{d.Hold && !v.Ready && others > 0, "not with an API server that is not ready, when another one is"},
					{d.Hold && !v.Ready && !v.Holding, "never taken with an API server that is not ready"},
					{v.Holding && !v.Ready && others == 0 && left > margin && v.Wanted && !v.Stopping && v.Standing.In && v.Standing.First && d.Drop, "kept while nobody else could take it"},
					{v.Wanted && v.Ready && !v.Stopping && v.Standing.In && v.Standing.First && left > margin && !d.Hold, "taken by whoever may"},
					{d.Enter && (v.Standing.In || !v.Ready || !v.Wanted || v.Stopping), "in the queue is who is ready"},
					{!v.Standing.In && v.Ready && v.Wanted && !v.Stopping && !d.Enter, "who is ready is in the queue"},
					{d.Leave && (!v.Standing.In || d.Hold || d.Enter), "leaving is giving it up"},
					{v.Standing.In && !v.Ready && !d.Hold && !d.Leave, "who is not ready does not wait in front of others"},
					{d.Drop != (d.Why != ""), "a reason for dropping"},
				} {
					if rule.broken {
						t.Errorf("%s: %+v (%v left): %+v", rule.name, v, left, d)
					}
				}
			}
		}
	}
	if n != 64*3*7 {
		t.Errorf("%d combinations", n)
	}
}

func TestReasonsForLettingGo(t *testing.T) {
	now := time.Unix(1000, 0)
	good := View{Wanted: true, Ready: true, Holding: true, Standing: Standing{In: true, First: true, Others: 2, Until: now.Add(TTL)}}
	for want, change := range map[string]func(*View){
		"":                func(*View) {},
		"the agent stops": func(v *View) { v.Stopping = true },
		"cluster.yaml does not have it for this machine any more": func(v *View) { v.Wanted = false },
		"another control plane is first in etcd's queue":          func(v *View) { v.Standing.First = false },
		"etcd has not renewed the lease in time":                  func(v *View) { v.Standing.Until = now },
		"the API server is not ready, and another one is":         func(v *View) { v.Ready = false },
	} {
		v := good
		change(&v)
		if got := Decide(v, now).Why; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// The kernel's lifetime, late as it may be, ends before the lease.
func TestTheKernelForgetsTheAddressBeforeTheLeaseEnds(t *testing.T) {
	now := time.Unix(1000, 0)
	for left := -time.Second; left < 10*time.Second; left += time.Millisecond {
		life := lifetime(now.Add(left), now)
		if life%time.Second != 0 || life < 0 || life > 0 && life+kernelLag > left {
			t.Fatalf("with %v left it lives for %v", left, life)
		}
		if left >= time.Second+kernelLag && life == 0 {
			t.Fatalf("with %v left it does not live", left)
		}
	}
	// A question that is lost does not cost the address: the next one is in time.
	if life := lifetime(now.Add(TTL), now.Add(10*time.Millisecond)); life < Beat+CallTime+again {
		t.Errorf("it lives for %v", life)
	}
}

func TestAWordCountsAfterAWhile(t *testing.T) {
	var s steady
	at := time.Unix(1000, 0)
	for _, step := range []struct {
		after time.Duration
		said  bool
		want  bool
	}{
		{0, true, false}, {patience - 1, true, false}, {1, true, true}, {patience / 2, false, true}, {patience / 4, true, true},
		{patience / 4, false, true}, {patience - 1, false, true}, {1, false, false}, {0, true, false}, {patience, true, true},
	} {
		at = at.Add(step.after)
		if got := s.hear(step.said, at); got != step.want {
			t.Errorf("at %v: got %v, want %v", at.Sub(time.Unix(1000, 0)), got, step.want)
		}
	}
}

// gopacket judges both announcements.
func TestAnnouncements(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	four, six := netip.MustParseAddr("10.0.0.100"), netip.MustParseAddr("fd00:10::100")
	p := gopacket.NewPacket(arpAnnouncement(mac, four), layers.LayerTypeARP, gopacket.Default)
	arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if !ok || p.ErrorLayer() != nil {
		t.Fatal(p)
	}
	got := fmt.Sprint(arp.AddrType, arp.Protocol, arp.Operation, net.HardwareAddr(arp.SourceHwAddress), net.IP(arp.SourceProtAddress), net.HardwareAddr(arp.DstHwAddress), net.IP(arp.DstProtAddress))
	if want := "Ethernet IPv4 1 02:00:00:00:00:07 10.0.0.100 00:00:00:00:00:00 10.0.0.100"; got != want {
		t.Errorf("ARP: got %s, want %s", got, want)
	}
	p = gopacket.NewPacket(neighbourAdvertisement(mac, six), layers.LayerTypeICMPv6, gopacket.Default)
	icmp, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if !ok || icmp == nil || p.ErrorLayer() != nil {
		t.Fatal(p)
	}
	got = fmt.Sprint(icmp.TypeCode, na.Router(), na.Solicited(), na.Override(), na.TargetAddress, na.Options[0].Type, net.HardwareAddr(na.Options[0].Data))
	if diff := cmp.Diff("NeighborAdvertisement false false true fd00:10::100 TargetAddress 02:00:00:00:00:07", got); diff != "" {
		t.Error(diff)
	}
}
