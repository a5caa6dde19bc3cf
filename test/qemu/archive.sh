# Sourced by the scripts beside this: the archive of a newer Debian than the machine's.
# Nothing is installed and no source of packages is added to the machine. The builds are
# those of the archive and not pinned, for Debian removes what a newer one replaces; apt
# verifies their signature and digests.

suite=trixie

# archive WORK ARCHITECTURE prepares a directory; it fails with the reason in WORK/why.
archive() {
	local work=$1 architecture=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror
	mkdir "$work/lists" "$work/cache" "$work/root"
	touch "$work/installed"
	if [[ ! -r $keyring ]]; then
		echo "there is no $keyring (debian-archive-keyring)" >"$work/why"
		return 1
	fi
	# shellcheck disable=SC2016
	mirror=$(apt-get indextargets --format '$(SITE)' "Created-By: Packages" | grep -m 1 -E '/debian/?$' || true)
	if [[ -z $mirror ]]; then
		echo 'no archive of Debian is among the sources of apt' >"$work/why"
		return 1
	fi
	echo "deb [signed-by=$keyring arch=$architecture] $mirror $suite main" >"$work/sources.list"
	# That nothing is installed has apt bring every library too.
	apt_options=(-qq -o Acquire::Retries=3 -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
		-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
		-o "Dir::Cache=$work/cache" -o "Dir::State::status=$work/installed" -o APT::Sandbox::User="$(id -un)")
	if ! timeout 300 apt-get "${apt_options[@]}" update >"$work/log" 2>&1; then
		echo "$suite cannot be read: $(tail -n 1 "$work/log")" >"$work/why"
		return 1
	fi
}

# unpack WORK puts the files of all packages that were downloaded below WORK/root.
unpack() {
	local deb
	for deb in "$1"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$1/root"; done
}
