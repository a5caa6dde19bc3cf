#!/bin/sh
# The first process of a Linux that runs as a program (test/uml): this machine's files,
# read-only, the certificates of a server in WORK, and in AGENT the program of the tests, which
# is the server and the machine's agent here.
#
# eno1 and eno2 are the machine's; port1 and port2 are the other ends of their cables, and belong
# to a switch, where the server is too.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
# Read-only: networkd takes that for a container without udev and waits for no rules.
mount -t sysfs -o ro sys /sys
mount -t tmpfs tmp /run
mount -t tmpfs tmp /etc/systemd
mount -t tmpfs tmp /var/lib/dbus 2>/dev/null
mkdir -p /etc/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/dbus
chown -R systemd-network: /run/systemd/netif
modprobe -d "$WORK" -a bonding 8021q veth bridge
ip link set lo up

ip netns add switch
ip -n switch link set lo up
for n in 1 2; do
	ip link add "eno$n" address "02:00:00:00:00:2$n" type veth peer name "port$n" netns switch
done

# The machine's files as its agent sees them: networkd's and the kernel's are the real ones.
mkdir -p /run/root/etc/systemd /run/root/sys /run/root/dev /run/root/proc/sys/kernel/random
mount --bind /etc/systemd /run/root/etc/systemd
mount --rbind /sys /run/root/sys
: >/run/root/dev/console

# What the machine has by itself: an address on the card that firmware booted from, untagged.
printf '[Match]\nName=eno1\n\n[Network]\nAddress=10.5.0.11/24\n' >/etc/systemd/network/zz-default.network
dbus-daemon --system --fork --nopidfile >/run/dbus.log 2>&1
LINKS_ROLE=server ip netns exec switch "$AGENT" >/run/server.log 2>&1 &
LINKS_ROLE=agent "$AGENT" 2>/run/agent.log
echo "@@exit $?"
sed 's/^/@@log /' /run/agent.log /run/server.log /run/networkd.log /run/dbus.log
sed 's/^/@@console /' /run/root/dev/console
echo "@@end"
echo o >/proc/sysrq-trigger
sleep 60
