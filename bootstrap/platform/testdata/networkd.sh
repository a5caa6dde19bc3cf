#!/bin/sh
# The first process of a Linux that runs as a program (test/uml): this machine's files,
# read-only, and in WORK the files that a platform's addresses have become, twice. Cards ask by
# DHCP, as Flatcar's do, and nobody answers; then the files come, and networkd is told.
#
# eth0 and eth1 are the machine's. eth2 and eth3 are the other ends of their cables, and belong
# to a router, which has the network behind it too.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
# Read-only: networkd takes that for a container without udev and waits for no rules.
mount -t sysfs -o ro sys /sys
mount -t tmpfs tmp /run
mount -t tmpfs tmp /etc/systemd
mkdir -p /etc/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/dbus
chown -R systemd-network: /run/systemd/netif
modprobe -d "$WORK" ipv6
ip link set lo up

ip netns add router
ip -n router link set lo up
ip link set eth2 netns router
ip link set eth3 netns router
ip -n router address add 10.42.0.1/24 dev eth2
ip -n router address add fe80::1/64 dev eth2 nodad
ip -n router address add 10.60.0.1/32 dev lo
ip -n router address add 2001:db8:60::1/128 dev lo nodad
ip -n router link set eth2 up
ip -n router link set eth3 up

# Flatcar's zz-default.network, in short.
printf '[Match]\nName=eth*\n\n[Network]\nDHCP=yes\n' >/etc/systemd/network/zz-default.network
# networkctl asks by D-Bus.
mount -t tmpfs tmp /var/lib/dbus 2>/dev/null
dbus-daemon --system --fork --nopidfile >/run/dbus.log 2>&1
SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=info /lib/systemd/systemd-networkd 2>/run/log &
i=0
until networkctl list eth0 2>/dev/null | grep -q configuring || [ $i -ge 100 ]; do i=$((i + 1)); sleep 0.1; done
sed 's/^/@@before /' /run/log

cp "$WORK"/first/* /etc/systemd/network/
networkctl reload 2>&1 | sed 's/^/@@reload /'
online() { if /lib/systemd/systemd-networkd-wait-online --interface=eth0:routable --interface=eth1:routable --timeout=60 2>/run/online.log; then echo "@@online yes"; else echo "@@online no"; fi; }
online
echo "@@addresses $(ip -j address)"
echo "@@routes $(ip -j route)"
echo "@@routes6 $(ip -6 -j route)"
ping -c 3 -W 2 -i 0.2 10.42.0.1 >/dev/null && echo "@@ping router"
ping -c 3 -W 2 -i 0.2 10.60.0.1 >/dev/null && echo "@@ping behind"
ip -n router route add 2001:db8:42::/64 dev eth2
ping -c 3 -W 2 -i 0.2 2001:db8:60::1 >/dev/null && echo "@@ping router6"

# The same again changes nothing, and another address takes the first one's place.
cp "$WORK"/second/* /etc/systemd/network/
networkctl reload 2>&1 | sed 's/^/@@reload /'
i=0
until ip address show dev eth0 | grep -q 10.42.0.12 || [ $i -ge 100 ]; do i=$((i + 1)); sleep 0.1; done
online
echo "@@addresses2 $(ip -j address)"
ping -c 3 -W 2 -i 0.2 10.60.0.1 >/dev/null && echo "@@ping second"
sed 's/^/@@log /' /run/log /run/online.log /run/dbus.log
echo "@@end"
echo o >/proc/sysrq-trigger
sleep 60
