#!/usr/bin/env bash
# Fetches NVIDIA's own libnvidia-ml.so.1 of driver branch 535, as Debian's non-free archive carries it (bookworm), and
# unpacks it into the cache. Never installs it, needs no root, adds no apt source.
#
# Prints the directory that holds libnvidia-ml.so.1. What was fetched once is found again without network and apt.
set -euo pipefail

say() { printf 'real.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

suite=bookworm
branch=535
cache=${FABRICTAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fabrictap}
store=$cache/nvml
library=$store/$branch/libnvidia-ml.so.1

found() {
    printf '%s\n' "$store/$branch"
    exit 0
}
[[ -s $library ]] && found

for tool in apt-get apt-cache dpkg-deb flock; do
    command -v "$tool" >/dev/null || die "$tool not found: this needs Debian or Ubuntu; elsewhere put that library at $library"
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -s $keyring ]] || die "$keyring not found: apt-get install debian-archive-keyring"

mkdir -p "$store"
exec 9>"$store/.lock"
flock 9 # two test runs at once: the second waits and finds the first one's result
[[ -s $library ]] && found

uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n 1)
uri=${uri:-${FABRICTAP_DEBIAN_MIRROR:-}} # Ubuntu: the packages are signed, the keys are Debian's
[[ -n $uri ]] || die "no Debian archive among the apt sources; FABRICTAP_DEBIAN_MIRROR can name one"

work=$(mktemp -d "$store/.unpack-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/empty" "$work/tree"
printf 'deb [signed-by=%s] %s %s non-free\n' "$keyring" "$uri" "$suite" >"$work/sources.list"
# A package index of our own: the system's sources stay as they are. apt's download user cannot write into the cache.
options=(-o "APT::Sandbox::User=$(id -un)" -o "Dir::Etc::sourcelist=$work/sources.list"
    -o "Dir::Etc::sourceparts=$work/empty" -o "Dir::State::lists=$work/lists" -o "Dir::Cache::pkgcache="
    -o "Dir::Cache::srcpkgcache=" -o "APT::Default-Release=" -o "Dir::Etc::preferencesparts=$work/empty"
    -o "Acquire::Languages=none" -o "Acquire::http::Timeout=30" -o "Acquire::Retries=1")
say "reading the package index of $suite non-free"
apt-get "${options[@]}" -qq update >&2 || die "apt-get update for $suite non-free failed"
# Ask for the branch by version: the system may prefer another.
version=$(apt-cache "${options[@]}" madison libnvidia-ml1 | awk -F'|' -v branch="$branch" \
    '{gsub(/ /, "", $2)} index($2, branch ".") == 1 {print $2; exit}')
[[ -n $version ]] || die "no libnvidia-ml1 of branch $branch at $uri: no network, or gone from there"
say "fetching libnvidia-ml1 $version"
(cd "$work" && apt-get "${options[@]}" -qq download "libnvidia-ml1=$version" >&2) || die "apt-get download failed"
dpkg-deb -x "$work"/libnvidia-ml1_*.deb "$work/tree"

# The package keeps the file under a driver's own directory; its links come with other packages.
file=$(find "$work/tree" -type f -name 'libnvidia-ml.so.*' | head -n 1)
[[ -n $file ]] || die "no libnvidia-ml.so in libnvidia-ml1 $version"
mkdir -p "$store/$branch"
mv "$file" "$library"
find "$work/tree" -type f -name copyright -exec cp {} "$store/$branch/copyright" \;
found
