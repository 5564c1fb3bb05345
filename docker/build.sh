#!/usr/bin/env bash
# Build the image with podman or docker:  docker/build.sh cpu|gpu TAG [options of `podman build`]
#
#   BASE_IMAGE=docker.io/library/python:3.11-slim@sha256:... docker/build.sh cpu registry.example.org/plmsae:0.1.0
#
# Environment:
#   BASE_IMAGE   the base, by digest; tags move, so a tag alone is refused
#   ENGINE       podman (default where it is installed) or docker
#   PIP_CONF     a pip.conf for the build alone (mirror, certificate); it enters no layer
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $1" >&2; echo "  fix: $2" >&2; exit 2; }

target=${1:-} tag=${2:-}
case $target in cpu|gpu) ;; *) fail "the target must be cpu or gpu, not '$target'" "docker/build.sh cpu plmsae:dev" ;; esac
[[ -n $tag ]] || fail "no tag given" "docker/build.sh $target plmsae:dev"
shift 2
[[ ${BASE_IMAGE:-} =~ @sha256:[0-9a-f]{64}$ ]] || fail "BASE_IMAGE '${BASE_IMAGE:-}' is not named by digest" \
    "podman pull docker.io/library/python:3.11-slim && podman image inspect --format '{{index .RepoDigests 0}}' python:3.11-slim"
engine=${ENGINE:-$(command -v podman || command -v docker || true)}
[[ -n $engine ]] || fail "neither podman nor docker is installed" "install podman"

commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[[ $commit == unknown || -z $(git status --porcelain -- src docker pyproject.toml 2>/dev/null) ]] || commit=$commit-dirty

options=(--file docker/Dockerfile --target "$target" --tag "$tag"
    --build-arg "BASE_IMAGE=$BASE_IMAGE" --build-arg "GIT_COMMIT=$commit")
[[ -z ${PIP_CONF:-} ]] || options+=(--secret "id=pip.conf,src=$PIP_CONF")
[[ $(basename "$engine") == docker ]] || options+=(--layers)
exec "$engine" build "${options[@]}" "$@" .
