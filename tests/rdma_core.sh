#!/usr/bin/env bash
# Fetches the verbs libraries of a Debian suite and unpacks them, with what runs them there: their own libc and
# ibv_rc_pingpong. Never installs them, needs no root.
#
#   rdma_core.sh bullseye      rdma-core 33
#   rdma_core.sh bookworm      rdma-core 44
#   rdma_core.sh trixie        rdma-core 56
#
# Prints the directory, in which usr/lib/*/libibverbs.so.1 and usr/lib/*/libibverbs/ lie as in the packages. It is a
# root that can be entered with chroot, once /dev, /proc and /sys are mounted in it.
# What was fetched once is found again without network and without apt.
set -euo pipefail

say() { printf 'rdma_core.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

suite=${1:?the name of a Debian suite, for example trixie}
store=${FABRICTAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fabrictap}/rdma-core
packages=(libibverbs1 ibverbs-providers ibverbs-utils libnl-3-200 libnl-route-3-200 libc6)

complete() {
    compgen -G "$store/$suite/usr/lib/*/libibverbs/*-rdmav*.so" >/dev/null &&
        [[ -x $store/$suite/usr/bin/ibv_rc_pingpong && -d $store/$suite/proc && -d $store/$suite/lib64/. ]]
}

found() {
    printf '%s\n' "$store/$suite"
    exit 0
}

complete && found

for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool not found: this needs Debian or Ubuntu"
done
mkdir -p "$store"
exec 9>"$store/.lock"
flock 9 # two test runs at once: the second waits and finds the first one's result
complete && found

uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n 1)
[[ -n $uri ]] || die "no Debian archive among the apt sources, cannot look for suite $suite"
# A private package index: the system's own sources stay as they are.
lists=$store/.apt-$suite
mkdir -p "$lists/lists/partial" "$lists/empty"
printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$uri" "$suite" >"$lists/sources.list"
options=(-o "Acquire::Languages=none" -o "APT::Sandbox::User=$(id -un)" # apt's own download user cannot write into a private directory
    -o "Dir::Etc::sourcelist=$lists/sources.list" -o "Dir::Etc::sourceparts=$lists/empty"
    -o "Dir::State::lists=$lists/lists" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
    -o "Dir::State::status=/dev/null" # what is installed here is no candidate there
    -o "APT::Default-Release=" -o "Dir::Etc::preferencesparts=$lists/empty")
say "reading the package index of $suite"
apt-get "${options[@]}" -qq update >&2 || die "apt-get update for suite $suite failed"

work=$(mktemp -d "$store/.unpack-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/deb" "$work/tree"
say "fetching ${packages[*]} of $suite"
(cd "$work/deb" && apt-get "${options[@]}" -qq download "${packages[@]}" >&2) ||
    die "apt-get download ${packages[*]} failed: no network?"
for package in "$work"/deb/*.deb; do
    dpkg-deb -x "$package" "$work/tree"
done
chmod -R u+rwX,go+rX "$work/tree"
# What no package but a system's setup makes: mount points, and since libc lies below usr the links to it.
mkdir -p "$work/tree"/{dev,proc,sys,tmp}
for directory in lib lib64; do
    [[ -e $work/tree/$directory ]] || ln -s "usr/$directory" "$work/tree/$directory"
done
rm -rf "${store:?}/$suite"
mv "$work/tree" "$store/$suite"
complete || die "no provider libraries in ${packages[*]} of $suite"
found
