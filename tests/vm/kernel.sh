#!/usr/bin/env bash
# Fetches a distribution kernel and unpacks it for the test VM. Never installs it, needs no root.
#
#   kernel.sh                        the kernel of this distribution's default kernel package
#   kernel.sh 6.1.0-56-amd64         this one
#   kernel.sh --suite bullseye       the default kernel of another Debian suite of the same archive
#   kernel.sh --suite bullseye 5.10.0-32-amd64
#   kernel.sh --suite bullseye --headers 5.10.0-32-amd64    its headers: DIR/lib/modules/VERSION/{build,source}
#
# Prints the directory: DIR/boot/vmlinuz-VERSION, DIR/lib/modules/VERSION; VERSION is DIR's last part.
# What was fetched once is found again without network and without apt.
set -euo pipefail

say() { printf 'kernel.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
# What no package that could be installed here would change.
unobtainable() { say "$@"; exit 3; }

suite=
if [[ ${1:-} == --suite ]]; then
    suite=${2:?--suite needs the name of a Debian suite, for example bullseye}
    shift 2
fi
headers=
if [[ ${1:-} == --headers ]]; then
    headers=${2:?--headers needs the version of a kernel}
    shift
fi
version=${1:-}
[[ $version || $suite ]] || version=${FABRICTAP_KERNEL:-}
cache=${FABRICTAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fabrictap}
store=$cache/kernel
# Which version "the default" was when it was last looked up, so that a machine without network starts too.
default=$store/default${suite:+-$suite}

if [[ $headers && -d $store/headers-$version ]]; then
    printf '%s\n' "$store/headers-$version"
    exit 0
fi

complete() { [[ -s $store/$1/boot/vmlinuz-$1 && -s $store/$1/lib/modules/$1/modules.dep ]]; }

found() {
    printf '%s\n' "$store/$1"
    exit 0
}

[[ -z $version && -s $default ]] && version=$(<"$default")
[[ -n $version && ! $headers ]] && complete "$version" && found "$version"

for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool not found: this needs Debian or Ubuntu;" \
        "elsewhere put a kernel at $store/VERSION (boot/vmlinuz-VERSION, lib/modules/VERSION) and set FABRICTAP_KERNEL=VERSION"
done
# kmod lives in /usr/sbin, which is not in every user's PATH.
PATH=$PATH:/usr/sbin:/sbin
command -v depmod >/dev/null || die "depmod not found: apt-get install kmod"

mkdir -p "$store"
exec 9>"$store/.lock"
flock 9 # two test runs at once: the second waits and finds the first one's result
[[ -n $version && ! $headers ]] && complete "$version" && found "$version"

# apt's own download user cannot write into a private cache directory.
options=(-o "APT::Sandbox::User=$(id -un)")
if [[ -n $suite ]]; then
    # A private package index: the system's own sources stay as they are.
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n 1)
    [[ -n $uri ]] || unobtainable "no Debian archive among the apt sources, cannot look for suite $suite"
    lists=$store/.apt-$suite
    mkdir -p "$lists/lists/partial" "$lists/empty"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$uri" "$suite" >"$lists/sources.list"
    options+=(-o "Acquire::Languages=none" -o "Dir::Etc::sourcelist=$lists/sources.list" -o "Dir::Etc::sourceparts=$lists/empty"
        -o "Dir::State::lists=$lists/lists" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
        -o "APT::Default-Release=" -o "Dir::Etc::preferencesparts=$lists/empty")
    say "reading the package index of $suite"
    said=$(apt-get "${options[@]}" -qq update 2>&1) || {
        printf '%s\n' "$said" >&2
        [[ $said != *"does not have a Release file"* ]] || unobtainable "the archive has no suite $suite any more"
        die "apt-get update for suite $suite failed"
    }
fi

architecture=$(dpkg --print-architecture)
# The package whose dependency names the current kernel: Debian's, then Ubuntu's.
default_version() {
    local meta
    for meta in "linux-image-$architecture" linux-image-generic; do
        apt-cache "${options[@]}" depends "$meta" 2>/dev/null |
            sed -n 's/^ *Depends: linux-image-\([0-9].*\)$/\1/p' | head -n 1
    done | head -n 1
}
if [[ -z $version ]]; then
    version=$(default_version)
    if [[ -z $version && -z $suite && $(id -u) == 0 ]]; then
        say "no package index here yet: apt-get update"
        apt-get -qq update >&2 || true
        version=$(default_version)
    fi
    [[ -n $version ]] || die "apt knows neither linux-image-$architecture nor linux-image-generic: run 'apt-get update' as root"
    if complete "$version"; then
        printf '%s\n' "$version" >"$default"
        found "$version"
    fi
fi

work=$(mktemp -d "$store/.unpack-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/deb" "$work/tree"
packages=("linux-image-$version")
if [[ $headers ]]; then
    packages=("linux-headers-$version" "linux-headers-${version%-*}-common")
    say "fetching ${packages[*]}"
    (cd "$work/deb" && apt-get "${options[@]}" -qq download "${packages[@]}" >&2) ||
        die "apt-get download ${packages[*]} failed: no network, or an old package index"
    for package in "$work"/deb/*.deb; do dpkg-deb -x "$package" "$work/tree"; done
    # Where Debian has them apart: the generated ones and those of all architectures.
    mkdir -p "$work/tree/lib/modules/$version"
    ln -sfn "../../../usr/src/linux-headers-$version" "$work/tree/lib/modules/$version/build"
    ln -sfn "../../../usr/src/linux-headers-${version%-*}-common" "$work/tree/lib/modules/$version/source"
    chmod -R u+rwX,go+rX "$work/tree"
    mv "$work/tree" "$store/headers-$version"
    printf '%s\n' "$store/headers-$version"
    exit 0
fi
for extra in "linux-modules-$version" "linux-modules-extra-$version"; do # Ubuntu; rdma_rxe is in the last
    if apt-cache "${options[@]}" show "$extra" >/dev/null 2>&1; then packages+=("$extra"); fi
done
say "fetching ${packages[*]}"
(cd "$work/deb" && apt-get "${options[@]}" -qq download "${packages[@]}" >&2) ||
    die "apt-get download ${packages[*]} failed: no network, or an old package index (run 'apt-get update' as root)"
for package in "$work"/deb/*.deb; do
    dpkg-deb -x "$package" "$work/tree"
done
# With usr-merge the modules come under usr/lib.
if [[ ! -d $work/tree/lib/modules && -d $work/tree/usr/lib/modules ]]; then
    mkdir -p "$work/tree/lib"
    mv "$work/tree/usr/lib/modules" "$work/tree/lib/modules"
fi
[[ -s $work/tree/boot/vmlinuz-$version ]] || die "no boot/vmlinuz-$version in ${packages[*]}"
find "$work/tree/lib/modules" -name 'rdma_rxe.ko*' | grep -q . || die "kernel $version has no rdma_rxe module"
depmod -b "$work/tree" "$version"
chmod -R u+rwX,go+rX "$work/tree"

rm -rf "${store:?}/$version"
mv "$work/tree" "$store/$version"
[[ ${1:-} || (! $suite && ${FABRICTAP_KERNEL:-}) ]] || printf '%s\n' "$version" >"$default"
found "$version"
