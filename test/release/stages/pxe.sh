#!/bin/bash
# pxe.sh INITRAMFS USR.squashfs OUT.cpio.gz WORK: the network boot archive:
# stage 1 (inside the kernel on Flatcar) and usr.squashfs, which is the disk's
# /usr plus the file /.noupdate.
set -euo pipefail
initramfs=$1 squashfs=$2 out=$3 work=$4
here=$(cd "$(dirname "$0")/.." && pwd)

mkdir -p "$work/noupdate" "$work/pxe"
: > "$work/noupdate/.noupdate"
cp "$squashfs" "$work/pxe/usr.squashfs"
mksquashfs "$work/noupdate" "$work/pxe/usr.squashfs" -quiet -no-progress > "$work/mksquashfs.log"
# The squashfs is compressed already; gzip's lowest level keeps the kernel quick.
{ "$here/stages/archive.sh" "$initramfs" && "$here/stages/archive.sh" "$work/pxe"; } | gzip -1 -n > "$out"
