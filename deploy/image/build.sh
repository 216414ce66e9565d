#!/usr/bin/env bash
# The image, with its bill of materials and the table of its licences beside it, by buildah or docker; called by `make image`.
#   build.sh NAME FOLDER      as NAME in the builder's store; the papers in FOLDER
# From the environment: BASE, EXTRAS, BUILDER (a command: `buildah`, `docker`, with options), CERTIFICATES (a file for uv), FRESH=1 (no cache).
set -euo pipefail
cd "$(dirname "$0")/../.."
name=$1 folder=$2
read -ra builder <<<"${BUILDER:-$(command -v buildah || command -v docker || true)}"
[ ${#builder[@]} -gt 0 ] || { echo "neither buildah nor docker is here: install one of them, or name it by BUILDER=..." >&2; exit 1; }
revision=$(git rev-parse HEAD)$([ -z "$(git status --porcelain)" ] || echo "-changed")
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
arguments=(--file deploy/Dockerfile --tag "$name" --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" --build-arg "REVISION=$revision")
for key in BASE EXTRAS UV_DEFAULT_INDEX; do [ -z "${!key:-}" ] || arguments+=(--build-arg "$key=${!key}"); done
[ -z "${CERTIFICATES:-}" ] || arguments+=(--secret "id=certificates,src=$CERTIFICATES")
[ -z "${FRESH:-}" ] || arguments+=(--no-cache)

with_buildah() {
  "${builder[@]}" build --isolation chroot --layers=false --timestamp "$SOURCE_DATE_EPOCH" "${arguments[@]}" .
  local container; container=$("${builder[@]}" from --pull-never "$name")
  cp -r "$("${builder[@]}" mount "$container")/opt/millrace/share/millrace/." "$folder"
  "${builder[@]}" rm "$container" >/dev/null
}
with_docker() {
  DOCKER_BUILDKIT=1 "${builder[@]}" build "${arguments[@]}" .
  local container; container=$("${builder[@]}" create "$name")
  "${builder[@]}" cp "$container:/opt/millrace/share/millrace/." "$folder"
  "${builder[@]}" rm "$container" >/dev/null
}
mkdir -p "$folder"
case ${builder[0]} in *buildah) with_buildah ;; *) with_docker ;; esac
