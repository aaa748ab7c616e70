#!/bin/sh
# Makes the image's tree from Debian packages, unpacked and not installed: none of their scripts run.
#
#   tree.sh FABRICTAP.deb TREE        in a Debian with apt, as root
set -eu
deb=$1
tree=$2
export DEBIAN_FRONTEND=noninteractive

apt-get -qq update
# For the certificates of the authorities; Debian makes that file on installation.
[ -s /etc/ssl/certs/ca-certificates.crt ] || apt-get -qq install -y --no-install-recommends ca-certificates

# All that Python and the verbs libraries depend on, as if nothing were installed.
mkdir -p /packages/partial "$tree"
: >/packages/status
apt-get -qq -y --no-install-recommends --download-only -o Dir::State::status=/packages/status \
    -o Dir::Cache::archives=/packages -o APT::Sandbox::User=root \
    install python3 zlib1g libibverbs1 ibverbs-providers base-files netbase media-types tzdata
# What only their installation takes: a shell, its programs, a package manager.
for name in debconf dpkg tar perl-base bash dash coreutils sed grep gawk mawk adduser passwd login util-linux libc-bin; do
    rm -f /packages/"$name"_*.deb
done

# /usr is merged.
for directory in bin sbin lib lib64; do
    mkdir -p "$tree/usr/$directory"
    ln -s "usr/$directory" "$tree/$directory"
done
mkdir -p "$tree/var/lib/dpkg/status.d"
for package in /packages/*.deb "$deb"; do
    dpkg-deb --fsys-tarfile "$package" | tar -C "$tree" --keep-directory-symlink -xpf -
    # For scanners, which look here where there is no dpkg.
    dpkg-deb --ctrl-tarfile "$package" | tar -xOf - ./control >"$tree/var/lib/dpkg/status.d/$(dpkg-deb -f "$package" Package)"
done

cd "$tree"
rm -rf usr/share/doc/*/changelog* usr/share/doc/*/NEWS* usr/share/doc/fabrictap/*.md usr/share/man usr/share/locale \
    usr/share/lintian usr/share/bash-completion usr/share/pixmaps usr/share/applications usr/share/binfmts \
    usr/lib/systemd usr/lib/sysusers.d usr/lib/tmpfiles.d usr/share/python3 etc/fabrictap/config.yaml \
    usr/lib/python3*/idlelib usr/lib/python3*/lib2to3 usr/lib/python3*/pydoc_data usr/lib/python3*/distutils \
    usr/lib/python3*/turtledemo usr/lib/python3*/ensurepip usr/lib/*/gconv usr/lib/valgrind boot home
# Only Python runs here: nothing that is a program besides.
find usr/bin usr/sbin -mindepth 1 ! -name 'python3*' ! -name fabrictap -delete
# And compiled modules for its version only.
python=$(basename "$(readlink usr/bin/python3)")
tag=cpython-$(echo "${python#python}" | tr -d .)
find usr/lib/fabrictap/site -name '*.cpython-3*.so' ! -name "*.$tag-*" -delete

cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ 2>/dev/null || {
    mkdir -p etc/ssl/certs
    cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/
}
printf 'root:x:0:0:root:/:/usr/sbin/nologin\nfabrictap:x:999:999::/var/lib/fabrictap:/usr/sbin/nologin\n' >etc/passwd
printf 'root:x:0:\nfabrictap:x:999:\n' >etc/group
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >etc/nsswitch.conf
printf '# Everything has its default; mount a file over this one, or set FABRICTAP_SECTION__KEY.\n{}\n' \
    >etc/fabrictap/config.yaml
mkdir -p run/fabrictap var/lib/fabrictap tmp proc sys dev
chmod 0700 var/lib/fabrictap
chmod 1777 tmp

# The same bytes each time; nobody changes the sources afterwards, so nobody need look.
PYTHONHASHSEED=0 chroot . "/usr/bin/$python" -IB -m compileall -q --invalidation-mode unchecked-hash \
    /usr/lib/fabrictap/site "/usr/lib/$python" >/dev/null
