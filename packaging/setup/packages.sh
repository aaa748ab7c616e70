#!/usr/bin/env bash
# The one list of system packages (names as in Debian 12 and Ubuntu 22.04 and later).
#
#   packages.sh            prints the names
#   packages.sh install    installs what is missing, where that is allowed; otherwise says how
set -euo pipefail

required=(
    # the agent and its compiled parts
    build-essential    # C compiler for the Cython modules
    clang              # compiles the BPF programs
    llvm               # llvm-strip takes what is not BTF out of them
    libbpf-dev         # loads them
    libelf-dev         # libbpf reads ELF files with it
    zlib1g-dev         # and this compresses sections in them
    pkg-config         # finds these three
    python3-dev        # Python's headers
    python3-venv       # .venv
    # the tests that need RDMA: a VM with Soft-RoCE
    qemu-system-x86    # runs it, with or without KVM
    busybox-static     # boots it
    kmod               # modprobe in it, depmod for its kernel
    iproute2           # ip and rdma
    procps             # sysctl, pgrep
    rdma-core          # configuration of the verbs library
    ibverbs-providers  # the verbs library's drivers: rxe, mlx5, efa ...
    ibverbs-utils      # ibv_devices, ibv_*_pingpong
    rdmacm-utils       # rping
    perftest           # ib_write_bw and its family
    libibverbs-dev     # headers for the test programs in C
    libbpfcc           # compiles the headers of a kernel that has no type information
    # the test that asks NVIDIA's own library, fetched from Debian's archive
    debian-archive-keyring
    # the tests that install packages
    debootstrap        # bare Debian 12 and 13
    systemd-container  # runs them, with their own systemd
    buildah            # make image
    crun               # runs the image in the VM
)
# Not everywhere, and not needed to build or to test.
optional=(
    ccache             # make wheel compiles only what has changed, also in a fresh checkout
    bpftrace           # a peer of make bench: uprobes
    python3-bpfcc      # a peer of make bench: bcc's ring buffer
    prometheus         # runs the queries of dashboards and rules, judges the text exposition; tests start one of their own
    chromium-headless-shell # draws dashboards; Ubuntu has another Chromium
    fonts-dejavu-core  # the letters that it draws
    pngquant           # makes the pictures of docs/ small
    bpftool            # to look at loaded programs and maps; in linux-tools on Ubuntu
)
# Not installed, because Debian would start it as a service that listens on the network: unpacked into the cache.
unpacked=(
    prometheus-node-exporter # a peer of make bench, which runs it on loopback
)
home=${HOME:-/var/tmp/fabrictap-$(id -u)}
cache=${FABRICTAP_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/fabrictap}/packages

if [[ ${1:-} != install ]]; then
    printf '%s\n' "${required[@]}" "${optional[@]}" "${unpacked[@]}"
    exit 0
fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "setup: no apt here; install what these Debian packages hold: ${required[*]}" >&2
    exit 0 # what is really missing fails where it is used
fi

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

missing=()
for package in "${required[@]}"; do
    installed "$package" || missing+=("$package")
done
extra=()
for package in "${optional[@]}"; do
    installed "$package" || extra+=("$package")
done
wanted=()
for package in "${unpacked[@]}"; do
    [[ -d $cache/$package ]] || installed "$package" || wanted+=("$package")
done
((${#missing[@]} + ${#extra[@]} + ${#wanted[@]})) || exit 0

export DEBIAN_FRONTEND=noninteractive
install() { apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --no-install-recommends -y "$@" >/dev/null; }
known() { apt-cache show "$1" >/dev/null 2>&1; }

if [[ $(id -u) == 0 ]]; then
    apt-get -qq -o DPkg::Lock::Timeout=300 update || ((${#missing[@]} == 0)) # the rest works without
elif ((${#missing[@]})); then
    echo "setup: packages are missing. As root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi
if ((${#missing[@]})); then
    echo "setup: apt-get install ${missing[*]}"
    install "${missing[@]}" || {
        echo "setup: apt-get could not install ${missing[*]}; what it says stands above" >&2
        exit 1
    }
fi
for package in "${extra[@]}"; do
    [[ $(id -u) == 0 ]] && known "$package" || continue
    echo "setup: apt-get install $package (optional)"
    install "$package" || true
done
# Needs no root.
unpack() {
    local work
    work=$(mktemp -d)
    chmod 755 "$work" # apt downloads as a user of its own
    (cd "$work" && apt-get -qq download "$1" 2>/dev/null && dpkg-deb -x ./*.deb "$work/tree") &&
        mkdir -p "$cache" && rm -rf "${cache:?}/$1" && mv "$work/tree" "$cache/$1"
    local failed=$?
    rm -rf "$work"
    return "$failed"
}
for package in "${wanted[@]}"; do
    known "$package" || continue
    echo "setup: $package into $cache (optional)"
    unpack "$package" || true
done
