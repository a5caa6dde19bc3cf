#!/bin/sh
# The first process of a Linux that runs as a program (user-mode-linux) and has VLANs: this
# machine's files, read-only. It runs one test of BINARY, which is this test's own.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /run
modprobe -d "$WORK" -a 8021q veth bridge
TMPDIR=/run "$BINARY" -test.run "^$TEST\$" -test.v -test.timeout 10m 2>&1
echo o >/proc/sysrq-trigger
sleep 60
