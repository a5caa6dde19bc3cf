#!/bin/bash
# rootfs.sh OUT.tar: a Debian 12 root file system of the packages in
# packages.txt, and the cloud kernel's files without its maintainer scripts
# (they would build an initrd that nobody boots).
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")/.." && pwd)

packages=$(grep -v '^#' "$here/packages.txt" | paste -sd,)

# Run by mmdebstrap with the chroot as $1 and apt configured for it.
# shellcheck disable=SC2016  # expanded by the hook's shell, not here
kernel='set -e; cd "$1/tmp"; export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
p=$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p" | head -n 1)
apt-get -q download "$p"
dpkg-deb --fsys-tarfile "$p"_*.deb | tar -C "$1" --keep-directory-symlink -x
rm -f "$p"_*.deb'

mmdebstrap --quiet --mode=root --variant=essential \
	--include="$packages" \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/i18n/*' \
	--aptopt='Acquire::Retries "3"' \
	--customize-hook="$kernel" \
	bookworm "$out.part.tar"
mv "$out.part.tar" "$out"
