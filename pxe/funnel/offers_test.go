package funnel

import (
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/boot"
)

func offers(e boot.Event, what boot.Offer) boot.Event {
	e.Offer = what
	return rom(e)
}

// Quirk 5: four DISCOVERs and no REQUEST are a machine that does not take what it is
// offered, or does not hear it.
func TestOffersThatNobodyTakes(t *testing.T) {
	t.Parallel()
	const address, program = boot.OfferAddress, boot.OfferProgram
	offer := func(second int, what boot.Offer) boot.Event { return offers(at(second, boot.StageDHCP), what) }
	ack := func(second int) boot.Event { return rom(at(second, boot.StageDHCP)) }
	for _, c := range []struct {
		name   string
		events []boot.Event
		// found is at which events, counted from 0.
		found []int
		want  string
	}{
		{"UEFI's four times", []boot.Event{offer(0, address), offer(4, address), offer(12, address), offer(28, address)}, []int{3}, "it was offered an address 4 times and has not asked for it"},
		{"and once more", []boot.Event{offer(0, address), offer(4, address), offer(12, address), offer(28, address), offer(60, address)}, []int{3, 4}, "it was offered an address 5 times"},
		{"beside another server", []boot.Event{offer(0, program), offer(4, program), offer(12, program), offer(28, program)}, []int{3}, "it was offered a boot program 4 times and has asked nobody for an address"},
		{"it asks for one at last", []boot.Event{offer(0, address), offer(4, address), offer(12, address), ack(13), offer(28, address), ack(29), at(30, boot.StageNBP)}, nil, ""},
		{"two relays bring each of them", []boot.Event{offer(0, address), offer(0, address), offer(4, address), offer(4, address), offer(12, address), offer(12, address)}, nil, ""},
		{"a long time in between", []boot.Event{offer(0, address), offer(4, address), offer(12, address), offer(700, address), offer(704, address)}, nil, ""},
		{"iPXE, which waits for a proxy's offer", []boot.Event{at(0, boot.StageDHCP), at(1, boot.StageDHCP), at(3, boot.StageDHCP), at(7, boot.StageDHCP), at(15, boot.StageDHCP)}, nil, ""},
		{"what is refused in between", []boot.Event{offer(0, address), offer(4, address), no(rom(at(12, boot.StageDHCP)), "busy"), offer(28, address), offer(60, address)}, nil, ""},
	} {
		var b Boot
		var found []int
		for i, e := range c.events {
			var s Step
			if b, s = b.Next(e); s.Found.Code != "" {
				found = append(found, i)
				if s.Found.Code != CodeNoRequest || !s.News {
					t.Errorf("%s: event %d gives %+v", c.name, i, s)
				}
			}
		}
		if len(found) != len(c.found) || len(found) > 0 && found[0] != c.found[0] {
			t.Errorf("%s: found at %v, want %v", c.name, found, c.found)
		}
		if c.want != "" && (b.Refusal.Code != CodeNoRequest || !strings.HasPrefix(b.Refusal.Reason, c.want)) {
			t.Errorf("%s: the refusal is %+v", c.name, b.Refusal)
		}
	}
}
