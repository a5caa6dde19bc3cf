#!/bin/sh
# The first process of a Linux that runs as a program (test/uml): this machine's files,
# read-only, PROGRAM, which is the test's own, and three media in its drives. For each of them
# in turn: the label is what blkid says, PROGRAM reads the medium and writes networkd's files,
# networkd does them, and the router is asked.
#
# eth0 and eth1 are the machine's. eth2 and eth3 are the other ends of their cables, and belong
# to a switch, on which are a plain network and VLAN 42.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
# Read-only: networkd takes that for a container without udev and waits for no rules.
mount -t sysfs -o ro sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /run
mount -t tmpfs tmp /etc/systemd
mkdir -p /etc/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /dev/disk/by-label
chown -R systemd-network: /run/systemd/netif
modprobe -d "$WORK" -a ipv6 bonding 8021q bridge isofs vfat nls_cp437 nls_ascii nls_utf8 nls_iso8859-1
ip link set lo up

ip netns add switch
ip -n switch link set lo up
ip link set eth2 netns switch
ip link set eth3 netns switch
ip -n switch link add br0 type bridge
ip -n switch link set eth2 master br0
ip -n switch link set eth3 master br0
ip -n switch link add link br0 name br0.42 type vlan id 42
for l in eth2 eth3 br0 br0.42; do ip -n switch link set $l up; done
ip -n switch address add 10.42.0.1/24 dev br0.42
ip -n switch address add 10.5.0.1/24 dev br0
ip -n switch address add 2001:db8:5::1/64 dev br0 nodad
ip -n switch address add 10.60.0.1/32 dev lo

# medium DEVICE ADDRESSED: what a machine with this medium alone comes to.
medium() {
	label=$(blkid -p -o value -s LABEL "/dev/$1")
	ln -s "/dev/$1" "/dev/disk/by-label/$label"
	PLATFORM_ROLE=read "$PROGRAM"
	SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=info /lib/systemd/systemd-networkd 2>/run/log &
	networkd=$!
	if /lib/systemd/systemd-networkd-wait-online "--interface=$2:routable" --timeout=60 2>/run/online.log; then echo "@@online yes"; else echo "@@online no"; fi
	# Addresses of IPv6 are looked for twice at first.
	i=0
	while ip -6 address show tentative | grep -q 2001 && [ $i -lt 100 ]; do i=$((i + 1)); sleep 0.1; done
	echo "@@links $(ip -d -j address)"
}
# gone is the machine switched off, and its medium taken out.
gone() {
	kill $networkd
	wait $networkd
	sed 's/^/@@log /' /run/log /run/online.log
	rm -f /etc/systemd/network/* /dev/disk/by-label/*
	for l in vlan42 bond0; do ip link show $l >/dev/null 2>&1 && ip link delete $l; done
	for l in eth0 eth1; do ip link set $l down; ip address flush dev $l; done
}

medium ubda vlan42
ping -c 3 -W 2 -i 0.2 10.42.0.1 >/dev/null && echo "@@ping vlan"
gone
medium ubdb eth0
ping -c 3 -W 2 -i 0.2 10.5.0.1 >/dev/null && echo "@@ping plain"
ping -c 3 -W 2 -i 0.2 2001:db8:5::1 >/dev/null && echo "@@ping plain6"
gone
medium ubdc eth1
ping -c 3 -W 2 -i 0.2 10.60.0.1 >/dev/null && echo "@@ping netplan"
gone
echo "@@end"
echo o >/proc/sysrq-trigger
sleep 60
