#!/usr/bin/env bash
# Makes the image $1 from Debian's packages alone, with buildah, for machines that reach a Debian mirror and no registry:
# what a base needs and nothing else. Needs root and debootstrap.
set -euo pipefail
image=${1:?usage: scripts/local_base.sh IMAGE}
suite=bookworm  # its Python is 3.11
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
root=$folder/root
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
  "$suite" "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$folder/log" 2>&1 ||
  { tail -5 "$folder/log" >&2; exit 1; }
# What Debian's own slim images leave out, licences excepted.
find "$root/usr/share/doc" -mindepth 2 ! -type d ! -name copyright -delete
rm -rf "$root"/usr/share/{locale,man,info,groff,lintian,linda}/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
  "$root"/var/cache/debconf/*-old "$root"/var/log/* "$root"/etc/{hostname,resolv.conf,machine-id}
container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / >/dev/null
buildah config --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$image" >/dev/null
