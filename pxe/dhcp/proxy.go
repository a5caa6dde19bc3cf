package dhcp

import (
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
)

// seenTime is how long we remember whose address another server gave: for the boot
// program that is fetched by it right after.
const seenTime = 10 * time.Minute

// proxy decides where another server gives out the addresses. It names the boot
// program to those who look for one, in an offer without an address on port 67 and
// to those who ask port 4011, and never says no: others are none of our business.
func (r *query) proxy() Decision {
	if !r.client.boots() {
		return silent("not-netbooting", "%s does not netboot, and addresses come from another server", r.client.MAC)
	}
	if reason, code := r.refusesBoot(); code != "" {
		return silent(code, "%s", reason).refused()
	}
	t, chosen := r.kind, r.chosen
	switch {
	case r.BootServer && (t == dhcpv4.MessageTypeRequest || t == dhcpv4.MessageTypeInform):
		to := r.sender()
		if !to.IsValid() {
			return silent("malformed", "the request names no address")
		}
		verdict, busy := r.besideAdmission()
		if busy != nil {
			return *busy
		}
		return Decision{Reply: r.pointer(dhcpv4.MessageTypeAck), To: to, Verdict: verdict, Change: See, Lease: r.lease(to.Addr(), r.answer.Name, seenTime),
			Code: "boot-file", Reason: "answered on port 4011" + r.bootNote()}
	case r.BootServer:
	case t == dhcpv4.MessageTypeDiscover:
		verdict, busy := r.besideAdmission()
		if busy != nil {
			return *busy
		}
		return Decision{Reply: r.pointer(dhcpv4.MessageTypeOffer), To: r.destination(), Verdict: verdict,
			Code: "proxy-offer", Reason: "offered no address, another server does" + r.bootNote()}
	case t == dhcpv4.MessageTypeRequest && chosen.IsValid():
		d := silent("address-elsewhere", "the client takes the address %s from the server %s", r.RequestedIPAddress(), chosen)
		if taken := r.requested; taken.IsValid() {
			d.Change, d.Lease = See, r.lease(taken, r.answer.Name, seenTime)
		}
		return d
	}
	return silent("not-for-us", "message type %s is not for a proxy", t)
}

// besideAdmission is admission where another server gives out the addresses. Silence
// sends firmware to its next boot device there, so a machine of cluster.yaml is let in
// whatever it has to wait; strangers, whose cards may be invented, are not.
func (r *query) besideAdmission() (verdict *admit.Verdict, busy *Decision) {
	v := r.admission()
	if v == nil || v.Admitted {
		return v, nil
	}
	if r.answer.Name != "" {
		v.Admitted = true
		return v, nil
	}
	d := silent("busy", "%s", v.Refusal()).refused()
	d.Verdict = v
	return nil, &d
}

// sender is where the packet came from: nobody can have our answers sent to
// somebody else's address by writing it into the packet.
func (r *query) sender() netip.AddrPort {
	if a := addr(r.From.Addr().AsSlice()); a.IsValid() {
		return netip.AddrPortFrom(a, r.From.Port())
	}
	return netip.AddrPortFrom(addr(r.ClientIPAddr), dhcpv4.ClientPort)
}

// pointer makes an answer that names a boot program and nothing else.
//
// Firmware looks at answers of its own class only. With it, but without option 43,
// UEFI asks us again on port 4011, whatever else the offer says (EDK2: a BINL
// offer); its menus, which option 43 stands for, are too broken to be used. ROMs for
// BIOS want to be told in option 43 that they need not ask; iPXE takes an offer with
// a file name as it is.
func (r *query) pointer(t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	m := r.skeleton(t)
	m.ServerIPAddr = ip(r.Server)
	if t == dhcpv4.MessageTypeAck {
		m.ClientIPAddr = r.ClientIPAddr
	}
	// HTTP boot puts its own class there, and quirks have the last word.
	m.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient"))
	var vendor []byte
	if r.stage() == Firmware && r.client.Firmware == boot.BIOS {
		vendor = append(vendor, 6, 1, 8) // PXE_DISCOVERY_CONTROL: take the file of this answer
	}
	if item := r.bootItem(); r.BootServer && item != nil {
		vendor = append(append(vendor, 71, 4), item...)
	}
	if vendor != nil {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, append(vendor, 255)))
	}
	r.addBootFile(m)
	return m
}

// bootItem is the item of a boot menu that the client asks for (PXE 2.1, table
// 2-7); the client wants to see it again.
func (r *query) bootItem() []byte {
	vendor := dhcpv4.Options{}
	if err := vendor.FromBytes(r.Options.Get(dhcpv4.OptionVendorSpecificInformation)); err != nil {
		return nil
	}
	if item := vendor[71]; len(item) == 4 {
		return item
	}
	return nil
}
