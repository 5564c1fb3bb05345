#!/usr/bin/env bash
# Make a base image where no registry can be reached: Debian bookworm with Python 3.11, by debootstrap (as root).
#
#   docker/base.sh localhost/debian-python:bookworm     prints the reference by digest, for BASE_IMAGE of build.sh
#
# Environment: MIRROR, the Debian mirror (default: the one of this machine's apt, or deb.debian.org).
set -euo pipefail

tag=${1:?usage: docker/base.sh TAG}
for tool in debootstrap podman; do
    command -v "$tool" > /dev/null || { echo "error: $tool is not installed" >&2; echo "  fix: apt-get install $tool" >&2; exit 2; }
done
if [[ -z ${MIRROR:-} ]]; then
    MIRROR=$(awk '/^URIs:/ { print $2; exit } /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) { print $i; exit } }' \
        /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null || true)
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" \
    "${MIRROR:-http://deb.debian.org/debian}" >&2
# What debootstrap took from, or wrote about, this machine.
rm -rf "$root"/var/log/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/tmp/*
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
echo 'deb http://deb.debian.org/debian bookworm main' > "$root/etc/apt/sources.list"
tar -C "$root" -c . | podman import --quiet - "$tag" >&2
podman image inspect --format '{{index .RepoDigests 0}}' "$tag"
