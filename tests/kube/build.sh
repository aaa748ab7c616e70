#!/usr/bin/env bash
# Builds the programs that judge the Helm chart, and the schemas of Kubernetes' API, and prints their folder:
# bin/helm, bin/kubeconform, bin/kube-score, schemas/VERSION/*.json.
#
#   build.sh          build unless it is built; the folder goes to stdout, everything else to stderr
#   build.sh --path   print where the folder is or would be; build nothing
#
# Programs are built from their Go modules with the versions that each of them pins. The schemas are those that
# Kubernetes itself publishes (api/openapi-spec/swagger.json of the module k8s.io/kubernetes), turned by
# schemas.py into what kubeconform reads. The folder lies in ${FABRICTAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/
# fabrictap}, under a name made of what is in it. Needs Go and its module proxy, no C compiler; 2 to 3 minutes on
# 2 cores the first time.
# Exit status: 0 built or there; 2 wrong use; 3 no usable Go; 4 the build failed.
set -euo pipefail

programs=(
    helm.sh/helm/v3/cmd/helm@v3.22.0
    github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
    github.com/zegl/kube-score/cmd/kube-score@v1.20.0
)
# The oldest that the chart says it installs on, one between, and the newest.
kubernetes=(1.28.15 1.31.14 1.37.2)
# The lowest Go that these modules accept.
needed=1.26.0

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
hash=$(printf '%s\n' "${programs[@]}" "${kubernetes[@]}" | cat - "$here/schemas.py" | sha256sum | cut -c1-12)
# A daemon or a bare container has no HOME.
home=${HOME:-/var/tmp/fabrictap-$(id -u)}
cache=${FABRICTAP_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/fabrictap}
target=$cache/kube-$hash

say() { printf 'build.sh: %s\n' "$*" >&2; }

case ${1:-} in
'') ;;
--path) echo "$target"; exit 0 ;;
*) say "usage: build.sh [--path]"; exit 2 ;;
esac

if [[ -d $target ]]; then
    echo "$target"
    exit 0
fi

PATH=$PATH:/usr/local/go/bin # where Go's own archive puts it
if ! command -v go >/dev/null; then
    say "Go $needed or later is needed to build helm, and there is no go in PATH."
    exit 3
fi
# What the caller's environment says about modules is about other builds, and a toolchain must not be
# fetched behind the caller's back.
export GOTOOLCHAIN=local GOFLAGS=-modcacherw GOWORK=off GOENV=off CGO_ENABLED=0
export GOMODCACHE=$cache/go/mod GOCACHE=$cache/go/build GOPATH=$cache/go
found=$(go env GOVERSION)
found=${found#go}
if [[ $(printf '%s\n' "$needed" "${found%% *}" | sort -V | head -1) != "$needed" ]]; then
    say "Go $needed or later is needed to build helm, found $found."
    exit 3
fi

mkdir -p "$cache"
exec 9>"$target.lock"
if ! flock -n 9; then
    say "another build is running; waiting for it"
    flock 9
    if [[ -d $target ]]; then
        echo "$target"
        exit 0
    fi
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/done/bin" "$work/done/schemas"
export GOBIN=$work/done/bin

schemas() {
    local version
    for version in "${kubernetes[@]}"; do
        # 300 MB of sources of which one file is wanted: not kept.
        GOMODCACHE=$work/mod go mod download "k8s.io/kubernetes@v$version" &&
            python3 "$here/schemas.py" \
                "$work/mod/k8s.io/kubernetes@v$version/api/openapi-spec/swagger.json" \
                "$work/done/schemas/$version" || return 1
        rm -rf "$work/mod"
    done
}

build() {
    cd "$work" || return 1 # go mod download looks for a module here, and finds none
    schemas & # waits for the network while the others wait for the CPU
    local downloads=$! program failed=0
    for program in "${programs[@]}"; do
        go install -ldflags='-s -w' "$program" || {
            failed=1
            kill "$downloads"
            break
        }
    done
    wait "$downloads" && ((failed == 0))
}

say "building helm, kubeconform and kube-score with Go $found, and schemas of Kubernetes ${kubernetes[*]}"
if ! (build) >"$work/log" 2>&1; then
    cp "$work/log" "$target.log"
    tail -n 20 "$work/log" >&2
    say "the build failed; the whole log: $target.log"
    exit 4
fi
mv "$work/done" "$target"
echo "$target"
