#!/bin/bash
# ignition.sh OUT: real Ignition from its Go module, with its distribution
# settings at the values of Flatcar's build where they differ from upstream's.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")/.." && pwd)

cd "$here/ignition"
version=$(go list -m -f '{{.Version}}' github.com/coreos/ignition/v2)
distro=github.com/coreos/ignition/v2/internal/distro
# The command line is the one ignition-run writes (aliases resolved).
CGO_ENABLED=1 go build -p 2 -trimpath -buildvcs=false -o "$out" -ldflags "-s -w \
	-X github.com/coreos/ignition/v2/internal/version.Raw=${version#v} \
	-X $distro.kargsCmd=/usr/lib/flatcar/ignition-kargs-helper \
	-X $distro.selinuxRelabel=false \
	-X $distro.kernelCmdlinePath=/run/ignition/cmdline" \
	github.com/coreos/ignition/v2/internal
