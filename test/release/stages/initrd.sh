#!/bin/bash
# initrd.sh USR OUT_DIR: fills OUT_DIR with the stage 1 initramfs: busybox, the
# storage modules, veritysetup, findfs and their libraries. Both the disk's
# initrd-a and the PXE cpio are made of it.
set -euo pipefail
usr=$1 out=$2
here=$(cd "$(dirname "$0")/.." && pwd)
base=$(dirname "$usr")
kver=$(basename "$usr"/lib/modules/*)

mkdir -p "$out"/{stage1/bin,stage1/modules,usr/sbin,usr/lib,usr/bin,etc,proc,sys,dev,run,sysroot}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$out/$dir"; done
cp "$here"/initrd/{init,lib.sh,udhcpc.script} "$out/stage1/"
mv "$out/stage1/init" "$out/init"
cp /bin/busybox "$out/stage1/busybox"
for applet in $("$out/stage1/busybox" --list); do ln -sf ../busybox "$out/stage1/bin/$applet"; done
mknod -m 0600 "$out/dev/console" c 5 1

# Modules in the order insmod needs them.
modprobe_list() { modprobe --dirname "$base/kmod" --set-version "$kver" --show-depends "$@"; }
mkdir -p "$base/kmod"
ln -sfn ../usr/lib "$base/kmod/lib"
for name in virtio_pci virtio_mmio virtio_blk virtio_scsi sd_mod sr_mod loop dm-verity squashfs overlay; do
	modprobe_list "$name"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
	cp "$path" "$out/stage1/modules/"
	basename "$path"
done > "$out/stage1/modules/order"

# Programs from the stand-in's own /usr, libraries by what they link to.
for program in sbin/veritysetup sbin/findfs; do
	cp -L "$usr/$program" "$out/usr/$program"
	for library in $(LD_LIBRARY_PATH="$usr/lib/x86_64-linux-gnu" ldd "$usr/$program" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }'); do
		case $library in
		*/ld-linux-x86-64.so.2) mkdir -p "$out/usr/lib64" && cp -L "$library" "$out/usr/lib64/" ;;
		*)
			mkdir -p "$out/usr/lib/x86_64-linux-gnu"
			cp -L "$usr/lib/x86_64-linux-gnu/$(basename "$library")" "$out/usr/lib/x86_64-linux-gnu/"
			;;
		esac
	done
done
rm -rf "$base/kmod"
