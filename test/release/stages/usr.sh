#!/bin/bash
# usr.sh ROOTFS.tar IGNITION CONTAINERD_DIR VERSION WORK: makes WORK/usr, the
# /usr tree of the stand-in, and WORK/vmlinuz out of a Debian root file system.
# An empty CONTAINERD_DIR leaves containerd out.
set -euo pipefail
rootfs_tar=$1 ignition=$2 containerd=$3 version=$4 work=$5
here=$(cd "$(dirname "$0")/.." && pwd)

root=$work/rootfs
mkdir -p "$root"
tar -C "$root" -xf "$rootfs_tar"
usr=$root/usr
units=$usr/lib/systemd/system

cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
if [ ! -d "$usr/lib/modules" ]; then
	echo "usr.sh: the kernel's modules are not under usr/lib" >&2
	exit 1
fi
kver=$(basename "$usr"/lib/modules/*)
# Flatcar's kernel shows its configuration in /proc/config.gz; Debian's does not,
# and kubeadm's preflight check looks here next.
cp "$root/boot/config-$kver" "$usr/lib/modules/$kver/config"

# --- what a node has no use for -------------------------------------------------
rm -rf "$usr"/share/{doc,man,info,locale,i18n,lintian,bash-completion,zsh,vim,common-licenses,bug,doc-base,perl5,pixmaps,menu,initramfs-tools,applications} \
	"$usr"/{games,include,src,local} "$usr"/lib/{apt,dpkg,systemd/catalog,systemd/boot,udev/hwdb.d,udev/hwdb.bin} \
	"$usr"/lib/x86_64-linux-gnu/{perl-base,gconv} "$usr"/bin/{perl*,dpkg*,localedef} "$usr"/lib/locale \
	"$usr"/share/{dpkg,debconf,perl,gcc,gdb,polkit-1}
modules=$usr/lib/modules/$kver/kernel
rm -rf "$modules"/drivers/{comedi,infiniband,media,soundwire,xen,hv,vfio,uio,cxl,mfd,leds,video,net/wwan,net/xen*,scsi/{lpfc,qla*,mpt*,megaraid,aacraid,aic*,be2iscsi,bfa,bnx*,csiostor,cxgbi,fnic,qedf,qedi}} \
	"$modules"/net/{atm,bluetooth,can,mac80211,wireless,rxrpc,dccp,tipc,rds,ceph,sunrpc,smc,batman-adv,appletalk,ax25,x25,lapb,phonet,ieee802154,mac802154,nfc,6lowpan} \
	"$modules"/fs/{afs,ceph,cifs,coda,f2fs,gfs2,hfs*,jffs2,jfs,ksmbd,lockd,minix,nfs*,nilfs2,ntfs*,ocfs2,orangefs,qnx*,reiserfs,romfs,smbfs*,sysv,ubifs,udf,ufs,befs,adfs,affs,bfs,efs,hpfs,omfs,zonefs,dlm,quota,ecryptfs,freevxfs,9p,cachefiles,fscache}
rm -rf "$modules"/arch/x86/kvm "$modules"/drivers/{cpufreq,powercap,thermal,hid,input/{mouse,tablet,touchscreen,joystick,misc},pps,ptp}
depmod --basedir "$usr/.." "$kver"

# --- /etc becomes the defaults under /usr ---------------------------------------
etc=$usr/share/flatcar/etc
mkdir -p "$usr/share/flatcar"
rm -rf "$root"/etc/{apt,dpkg,init.d,rc?.d,kernel,fstab,hostname,hosts,machine-id,resolv.conf,mtab,cron*,initramfs-tools,update-motd.d,motd,alternatives.bak,ssh/ssh_host_*,systemd/system,systemd/user,network,default/grub*,logrotate.d,modules-load.d/modules.conf,os-release,debian_version,issue,issue.net,.pwd.lock,passwd-,group-,shadow-,gshadow-,subuid*,subgid*}
mv "$root/etc" "$etc"
cp -a "$here/usr/." "$usr/"
mkdir -p "$etc"/{systemd/system,extensions,kubernetes/manifests,cni/net.d,flatcar,modules-load.d,sysctl.d}
ln -s ../usr/lib/os-release "$etc/os-release"
ln -s ../run/systemd/resolve/resolv.conf "$etc/resolv.conf"
ln -s ../proc/self/mounts "$etc/mtab"
ln -s ../usr/share/zoneinfo/UTC "$etc/localtime.new" && mv "$etc/localtime.new" "$etc/localtime"
printf '127.0.0.1 localhost\n::1 localhost\n' > "$etc/hosts"
printf 'This is \\n (Flatcar stand-in made of Debian packages) \\l\n\n' > "$etc/issue"
chmod 0440 "$etc/sudoers.d/core"

# Users and groups as Flatcar names them.
sed -i '/^\(core\|docker\|wheel\):/d' "$etc"/{passwd,group,shadow,gshadow}
sed -i 's/^root:[^:]*:/root:*:/' "$etc/shadow"
echo 'core:x:500:500:Flatcar Admin:/home/core:/bin/bash' >> "$etc/passwd"
echo 'core:*:19000:0:99999:7:::' >> "$etc/shadow"
sed -i 's/^\(sudo\|systemd-journal\):\(.*\):$/\1:\2:core/' "$etc/group" "$etc/gshadow"
printf 'core:x:500:\nwheel:x:10:core\ndocker:x:233:core\n' | sed '/^wheel/s/:10:/:510:/' >> "$etc/group"
printf 'core:!::\nwheel:!::core\ndocker:!::core\n' >> "$etc/gshadow"

# --- identity -------------------------------------------------------------------
rm -f "$usr/lib/os-release"
cat > "$usr/lib/os-release" <<EOF
NAME="Flatcar Container Linux by Kinvolk"
ID=flatcar
ID_LIKE=coreos
VERSION=$version
VERSION_ID=$version
BUILD_ID=stand-in
SYSEXT_LEVEL=1.0
PRETTY_NAME="Flatcar Container Linux stand-in $version (Debian parts)"
HOME_URL="https://flatcar.org/"
FLATCAR_BOARD="amd64-usr"
EOF
cat > "$usr/share/flatcar/release" <<EOF
FLATCAR_RELEASE_VERSION=$version
FLATCAR_RELEASE_BOARD=amd64-usr
FLATCAR_RELEASE_APPID={e96281a6-d1af-4bde-9a0a-97b76e56dc57}
EOF
ln -sfn ../../oem "$usr/share/oem"

# --- units: Debian's choices out, ours in ---------------------------------------
find "$usr/lib/systemd" -path '*-preset/*' -name '*.preset' ! -name '90-flatcar*' ! -name '99-default*' -delete
rm -f "$units"/{ssh.service,ssh.socket,ssh@.service,rescue-ssh.target,dpkg-db-backup.*,e2scrub*,apt-daily*,fstrim.timer,xfs_scrub*,mdcheck*,cryptdisks*,nftables.service,ipset.service,kexec*} \
	"$units"/*.wants/{e2scrub_reap.service,keyboard-setup.service}
# want TARGET UNIT...: a static link, which `enabled: false` cannot remove.
want() {
	local target=$1 unit
	shift
	mkdir -p "$units/$target.wants"
	for unit in "$@"; do ln -sfn "../$unit" "$units/$target.wants/$unit"; done
}
ln -sfn multi-user.target "$units/default.target"
rm -f "$units"/sysinit.target.wants/systemd-firstboot.service # it could ask questions
want sockets.target sshd.socket
want sysinit.target systemd-sysext.service ensure-sysext.service
cp "$usr/share/systemd/tmp.mount" "$units/" # Debian keeps it aside; Flatcar's /tmp is a tmpfs
want local-fs.target extend-filesystems.service tmp.mount
want multi-user.target ssh-key-proc-cmdline.service update-ssh-keys-after-ignition.service \
	update-engine.service locksmithd.service oem-cloudinit.service

# --- container runtime, Ignition, Kubernetes' volume plugin link -----------------
if [ -n "$containerd" ]; then
	install -m 0755 "$containerd"/{containerd,containerd-shim-runc-v2,ctr} "$usr/bin/"
	want multi-user.target containerd.service
fi
ln -sf ../sbin/runc "$usr/bin/runc"
install -m 0755 "$ignition" "$usr/lib/flatcar/ignition"
mkdir -p "$usr/libexec/kubernetes/kubelet-plugins/volume"
ln -sfn /var/kubernetes/kubelet-plugins/volume/exec "$usr/libexec/kubernetes/kubelet-plugins/volume/exec"

mv "$usr" "$work/usr"
rm -rf "$root"
du -sm "$work/usr" | sed 's/\t.*/ MiB in \/usr/'
