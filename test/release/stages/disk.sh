#!/bin/bash
# disk.sh USR.squashfs VMLINUZ INITRD OUT.bin WORK: the disk image, sparse, in
# the partition layout of Flatcar >= 4593. No mounts, no loop devices.
set -euo pipefail
squashfs=$1 vmlinuz=$2 initrd=$3 image=$4 work=$5
here=$(cd "$(dirname "$0")/.." && pwd)

sectors=16515072
esp_start=4096 bios_start=2101248 usra_start=2105344 oem_start=10493952 root_start=12722176
esp_serial=$(od -An -N4 -tx4 /dev/urandom | tr -d ' ' | tr a-f A-F)

# place FILE SECTOR: copies FILE into the image without filling its holes.
place() { dd if="$1" of="$image" bs=1M seek="$(($2 / 2048))" conv=sparse,notrunc status=none; }

# --- partition table ------------------------------------------------------------
rm -f "$image"
truncate -s $((sectors * 512)) "$image"
linux=0FC63DAF-8483-4772-8E79-3D69D8477DE4
coreos_usr=5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6
sgdisk --clear --set-alignment=4096 --disk-guid=00000000-0000-0000-0000-000000000001 \
	-n 1:$esp_start:+2097152 -c 1:EFI-SYSTEM -t 1:C12A7328-F81F-11D2-BA4B-00A0C93EC93B \
	-n 2:$bios_start:+4096 -c 2:BIOS-BOOT -t 2:21686148-6449-6E6F-744E-656564454649 \
	-n 3:$usra_start:+4194304 -c 3:USR-A -t 3:$coreos_usr -u 3:7130C94A-213A-4E5A-8E26-6CCE9662F132 \
	-A 3:set:48 -A 3:set:56 \
	-n 4:6299648:+4194304 -c 4:USR-B -t 4:$coreos_usr -u 4:E03DD35C-7C2D-4A47-B3FE-27F15780A57C \
	-n 6:$oem_start:+2097152 -c 6:OEM -t 6:$linux \
	-n 7:12591104:+131072 -c 7:OEM-CONFIG -t 7:C95DC21A-DF0E-4340-8D7B-26CBFA9A03E0 \
	-n 9:$root_start:+3653632 -c 9:ROOT -t 9:3884DD41-8582-4404-B9A8-E9B84F2DF50E \
	"$image" > "$work/sgdisk.log"

# --- USR-A: squashfs, then dm-verity's tree in the same partition -----------------
usra=$work/usr-a.img
data_blocks=260094
if [ "$(stat -c %s "$squashfs")" -gt $((data_blocks * 4096)) ]; then
	echo "disk.sh: /usr is larger than Flatcar's $data_blocks blocks" >&2
	exit 1
fi
cp --sparse=always "$squashfs" "$usra"
truncate -s $((1 << 30)) "$usra"
usrhash=$(veritysetup format --hash=sha256 --data-block-size=4096 --hash-block-size=4096 \
	--data-blocks=$data_blocks --hash-offset=$((data_blocks * 4096)) "$usra" "$usra" |
	awk '/^Root hash:/ { print $3 }')
place "$usra" $usra_start

# --- GRUB -------------------------------------------------------------------------
mkdir -p "$work/memdisk/boot/grub"
cp "$here/grub/grub.cfg" "$work/memdisk/boot/grub/grub.cfg"
tar -C "$work/memdisk" -cf "$work/memdisk.tar" boot
sed "s/@ESP_SERIAL@/${esp_serial:0:4}-${esp_serial:4:4}/" "$here/grub/load.cfg.in" > "$work/load.cfg"
modules=(part_gpt fat btrfs serial linux search search_fs_uuid search_fs_file search_label
	configfile normal memdisk tar echo read test true sleep reboot halt minicmd terminal gzio xzio)
grub-mkimage -O x86_64-efi -o "$work/bootx64.efi" -p '(memdisk)/boot/grub' \
	-c "$work/load.cfg" -m "$work/memdisk.tar" "${modules[@]}" efi_gop efinet tpm
grub-mkimage -O i386-pc -o "$work/core.img" -p '(memdisk)/boot/grub' \
	-c "$work/load.cfg" -m "$work/memdisk.tar" "${modules[@]}" biosdisk

# little_endian VALUE BYTES: as printf escapes.
little_endian() {
	local value=$1 i
	for ((i = 0; i < $2; i++)); do
		printf '\\x%02x' $((value >> (8 * i) & 255))
	done
}
# patch FILE OFFSET VALUE BYTES
patch() { printf '%b' "$(little_endian "$3" "$4")" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# What grub-bios-setup does, for a fixed place: boot.img loads one sector at
# BIOS-BOOT's start (its LBA at 0x5c, "do not check for a floppy" at 0x66);
# that sector's last 12 bytes list where the rest lies: LBA, sectors, segment.
core_sectors=$((($(stat -c %s "$work/core.img") + 511) / 512))
truncate -s $((core_sectors * 512)) "$work/core.img"
patch "$work/core.img" $((512 - 12)) $((bios_start + 1)) 8
patch "$work/core.img" $((512 - 4)) $((core_sectors - 1)) 2
patch "$work/core.img" $((512 - 2)) $((0x820)) 2
cp /usr/lib/grub/i386-pc/boot.img "$work/boot.img"
patch "$work/boot.img" $((0x5c)) $bios_start 8
patch "$work/boot.img" $((0x66)) $((0x9090)) 2
place "$work/core.img" $bios_start
# Code only: the protective MBR's table begins at byte 440.
dd if="$work/boot.img" of="$image" bs=440 count=1 conv=notrunc status=none

# --- EFI-SYSTEM ---------------------------------------------------------------------
esp=$work/esp.img
rm -f "$esp"
truncate -s 1G "$esp"
mkfs.vfat -F 32 -n EFI-SYSTEM -i "$esp_serial" "$esp" > "$work/mkfs.log"
printf 'set verity_usrhash=%s\n' "$usrhash" > "$work/verity-a.cfg"
: > "$work/first_boot"
mmd -i "$esp" ::/EFI ::/EFI/boot ::/flatcar ::/flatcar/grub ::/flatcar/grub/x86_64-efi ::/flatcar/grub/i386-pc
mcopy -i "$esp" "$work/bootx64.efi" ::/EFI/boot/bootx64.efi
mcopy -i "$esp" "$vmlinuz" ::/flatcar/vmlinuz-a
mcopy -i "$esp" "$initrd" ::/flatcar/initrd-a
mcopy -i "$esp" "$work/verity-a.cfg" ::/flatcar/verity-a.cfg
mcopy -i "$esp" "$work/first_boot" ::/flatcar/first_boot
mcopy -i "$esp" "$work/memdisk.tar" ::/flatcar/grub/grub.cfg.tar
mcopy -i "$esp" "$work/load.cfg" ::/flatcar/grub/x86_64-efi/load.cfg
mcopy -i "$esp" "$work/load.cfg" "$work/core.img" "$work/boot.img" ::/flatcar/grub/i386-pc/
place "$esp" $esp_start

# --- OEM: empty; ROOT: mount points only ----------------------------------------------
truncate -s 1G "$work/oem.img"
mkfs.btrfs --quiet --force --mixed -m single -d single --byte-count $((1 << 30)) -L OEM "$work/oem.img"
place "$work/oem.img" $oem_start

mkdir -p "$work/root"/{boot,usr,oem}
truncate -s $((3653632 * 512)) "$work/root.img"
mke2fs -q -t ext4 -b 4096 -i 4096 -I 256 -e remount-ro -L ROOT -d "$work/root" "$work/root.img"
place "$work/root.img" $root_start
rm -f "$work"/{usr-a,esp,oem,root}.img
