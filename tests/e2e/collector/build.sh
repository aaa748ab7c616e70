#!/usr/bin/env bash
# Builds the OpenTelemetry Collector of manifest.yaml and prints the path of its binary.
#
#   build.sh          build unless it is built; the path goes to stdout, everything else to stderr
#   build.sh --path   print where the binary is or would be; build nothing
#
# The binary lands in ${FABRICTAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fabrictap}, under a name made of
# the version and the hash of the manifest. Needs Go and its module proxy; no C compiler. About 6 minutes on
# 2 cores the first time.
# Exit status: 0 built or there; 2 wrong use; 3 no usable Go; 4 the build failed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
manifest=$here/manifest.yaml
version=$(sed -n 's/^  version: *//p' "$manifest")
# Comments do not change what is built.
hash=$(sed 's/ *#.*//; /^$/d' "$manifest" | sha256sum | cut -c1-12)
# A daemon or a bare container has no HOME.
home=${HOME:-/var/tmp/fabrictap-$(id -u)}
cache=${FABRICTAP_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/fabrictap}
target=$cache/otelcol-$version-$hash
# The lowest Go that the modules of this version accept.
needed=1.25.7

say() { printf 'build.sh: %s\n' "$*" >&2; }

case ${1:-} in
'') ;;
--path) echo "$target/otelcol"; exit 0 ;;
*) say "usage: build.sh [--path]"; exit 2 ;;
esac

if [[ -x $target/otelcol ]]; then
    echo "$target/otelcol"
    exit 0
fi

PATH=$PATH:/usr/local/go/bin # where Go's own archive puts it
if ! command -v go >/dev/null; then
    say "Go $needed or later is needed to build the Collector, and there is no go in PATH."
    exit 3
fi
# What the caller's environment says about modules is about other builds, and a toolchain must not be
# fetched behind the caller's back.
export GOTOOLCHAIN=local GOFLAGS=-modcacherw GOWORK=off GOENV=off CGO_ENABLED=0
export GOMODCACHE=$cache/go/mod GOCACHE=$cache/go/build GOPATH=$cache/go GOBIN=
found=$(go env GOVERSION)
found=${found#go}
if [[ $(printf '%s\n' "$needed" "${found%% *}" | sort -V | head -1) != "$needed" ]]; then
    say "Go $needed or later is needed to build the Collector, found $found."
    exit 3
fi

mkdir -p "$cache"
exec 9>"$target.lock"
if ! flock -n 9; then
    say "another build is running; waiting for it"
    flock 9
    if [[ -x $target/otelcol ]]; then
        echo "$target/otelcol"
        exit 0
    fi
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "building the Collector $version with Go $found (minutes when the module cache is cold)"
if ! {
    GOBIN=$work go install "go.opentelemetry.io/collector/cmd/builder@v$version" &&
        cp "$manifest" "$work/manifest.yaml" &&
        (cd "$work" && ./builder --config manifest.yaml)
} >"$work/log" 2>&1; then
    cp "$work/log" "$target.log"
    tail -n 20 "$work/log" >&2
    say "the build failed; the whole log: $target.log"
    exit 4
fi
mkdir "$work/done"
mv "$work/_build/otelcol" "$work/manifest.yaml" "$work/done/"
rm -rf "$target"
mv "$work/done" "$target"
echo "$target/otelcol"
