#!/bin/sh
# The first process of a Linux that runs as a program (user-mode-linux): this machine's files,
# read-only, and a node's own in WORK. It plugs cards into a switch, starts Debian's
# systemd-networkd, and says on its console how the links are then.
#
# eth0 and eth1 have MAC addresses as hardware has; eth2 and eth3 are the other ends of their
# cables, and belong to the switch. eno1 to eno4 are veth, which knows of a speed and of a
# pulled cable; LACP wants both.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
# Read-only: networkd takes that for a container without udev and waits for no rules.
mount -t sysfs -o ro sys /sys
mount -t tmpfs tmp /run
mount -t tmpfs tmp /etc/systemd
mkdir -p /etc/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network: /run/systemd/netif
cp "$WORK"/etc/systemd/network/* /etc/systemd/network/
modprobe -d "$WORK" -a bonding 8021q veth bridge
ip link set lo up

ip netns add switch
ip -n switch link set lo up
for n in 1 2 3 4; do
	ip link add "eno$n" type veth peer name "port$n" netns switch
	ip link set "eno$n" mtu 4000
	ip -n switch link set "port$n" mtu 4000
done
# A bond that the switch has on its side, with LACP, and VLAN 42 on that.
ip -n switch link add lag type bond mode 802.3ad lacp_rate fast miimon 100
ip -n switch link set lag mtu 4000
ip -n switch link set port1 master lag
ip -n switch link set port2 master lag
ip -n switch link set lag up
ip -n switch link add link lag name lag.42 type vlan id 42
ip -n switch address add 10.42.0.1/24 dev lag.42
ip -n switch link set lag.42 up
ip -n switch link set port3 up
ip -n switch link set port4 up
# And two ports of one network.
ip link set eth2 netns switch
ip link set eth3 netns switch
ip -n switch link add br0 type bridge
ip -n switch link set eth2 master br0
ip -n switch link set eth3 master br0
ip -n switch link set eth2 up
ip -n switch link set eth3 up
ip -n switch address add 10.5.0.1/24 dev br0
ip -n switch link set br0 up

SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=info /lib/systemd/systemd-networkd 2>/run/log &
# What boot waits for: it must come to an end with these files.
if /lib/systemd/systemd-networkd-wait-online --timeout=60 2>/run/online.log; then echo "@@online yes"; else echo "@@online no"; fi
sed 's/^/@@log /' /run/log /run/online.log

# Cards agree on a group within seconds (LACP, fast rate), not at once; on a machine that
# stands still it takes longer, and then all of a minute.
i=0
until [ "$(cat /proc/net/bonding/bond0 | grep -c 'port state: 63')" -ge 4 ] || [ $i -ge 600 ]; do i=$((i + 1)); sleep 0.1; done
sed 's/^/@@bond0 /' /proc/net/bonding/bond0
sed 's/^/@@bond1 /' /proc/net/bonding/bond1
echo "@@links $(ip -d -j link)"
echo "@@addresses $(ip -j address)"
echo "@@routes $(ip -j route)"
ping -c 3 -W 2 -i 0.2 10.42.0.1 >/dev/null && echo "@@ping vlan"
ping -c 3 -W 2 -i 0.2 10.5.0.1 >/dev/null && echo "@@ping backup"
# One cable is pulled.
ip -n switch link set port1 down
# Bonds look every 100 ms (miimon), and an answer may come over the other cable before that.
i=0
until sed -n '/^Slave Interface: eno1/,/^MII/p' /proc/net/bonding/bond0 | grep -q 'MII Status: down' || [ $i -ge 100 ]; do i=$((i + 1)); sleep 0.1; done
i=0
until ping -c 1 -W 1 10.42.0.1 >/dev/null || [ $i -ge 30 ]; do i=$((i + 1)); done
[ $i -lt 30 ] && echo "@@ping cable pulled"
sed 's/^/@@pulled /' /proc/net/bonding/bond0
echo "@@end"
echo o >/proc/sysrq-trigger
sleep 60
