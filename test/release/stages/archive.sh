#!/bin/bash
# archive.sh DIR: the tree as a newc cpio on standard output, owned by root, in
# a stable order.
set -euo pipefail
cd "$1"
find . -mindepth 1 -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0
