# Shell functions of both initrd stages. Needs /proc and /dev/kmsg.
# shellcheck shell=dash

# patience is how many seconds the initrd waits for anything: so many that a busy
# host is no reason to give up, and few enough that one line says what is missing.
patience=900

# say TEXT: one line on every console.
say() {
	echo "<5>initrd: $*" > /dev/kmsg
}

# fail TEXT: the boot ends here. No shell; Flatcar waits 300 s, we wait 10.
fail() {
	echo "<2>initrd: BOOT STOPPED: $*" > /dev/kmsg
	sleep 10
	echo "<2>initrd: rebooting" > /dev/kmsg
	sync
	/stage1/busybox reboot -f
	sleep 3600
}

# karg NAME: prints the last value of NAME= (or nothing for a bare NAME) on
# the kernel command line; status 1 if it is absent.
karg() {
	karg_found=1
	karg_value=
	# No globbing or quotes: arguments with spaces are not used here.
	set -f
	# shellcheck disable=SC2013  # words are wanted
	for karg_word in $(cat /proc/cmdline); do
		case $karg_word in
		"$1"=*) karg_found=0 karg_value=${karg_word#*=} ;;
		"$1") karg_found=0 karg_value= ;;
		esac
	done
	set +f
	[ "$karg_found" = 0 ] && printf '%s' "$karg_value"
	return "$karg_found"
}

# wait_for WHAT COMMAND...: until COMMAND succeeds. Stage 1 has no udev to ask.
wait_for() {
	wait_what=$1 wait_left=$((patience * 5))
	shift
	until "$@" > /dev/null 2>&1; do
		wait_left=$((wait_left - 1))
		[ "$wait_left" -gt 0 ] || fail "$wait_what did not appear within $patience s"
		sleep 0.2
	done
}

# settle: until udev is through with all that it was told so far.
settle() {
	udevadm settle --timeout="$patience" || fail "udev was not through with the devices after $patience s"
}

# appear WHAT LINK: until udev has made the link and is through with its device.
appear() {
	udevadm wait --settle --timeout="$patience" "$2" || fail "$1 did not appear within $patience s"
}
