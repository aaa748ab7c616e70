#!/bin/busybox sh
# PID 1 of the test VM: mounts the host's root read-only with writable memory on top where programs
# need it, then serves the host's requests over a virtio-serial port. The other end is harness.py.
#
# Everything here is busybox's shell: under emulation a dynamically linked bash takes 20 times as long to start.
#
# Requests, one line each:   start ID | signal ID NAME | off
# Replies:                   ready | pid ID PID | exit ID RC
# A job is a directory SHARE/jobs/ID with a file `command`; its `stdout` and `stderr` appear beside it.
export PATH=/run/vm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/tmp LANG=C.UTF-8 TERM=linux PYTHONDONTWRITEBYTECODE=1
busybox=/bin/busybox

fail() {
    $busybox echo "fabrictap-vm: FAILED: $*" >/dev/console
    $busybox poweroff -f
}

if [ "$1" != inside ]; then # first half: in the initramfs
    $busybox mkdir -p /proc /sys /dev /host
    $busybox mount -t proc proc /proc
    $busybox mount -t sysfs sys /sys
    $busybox mount -t devtmpfs dev /dev
    exec </dev/console >/dev/console 2>&1
    echo "fabrictap-vm: init"
    for module in $($busybox cat /modules/order); do
        $busybox insmod "/modules/$module" || fail "insmod $module"
    done
    # The host does not change under a running test, so its files may be cached; a shared directory may not.
    p9=trans=virtio,version=9p2000.L,msize=512000,access=any
    $busybox mount -t 9p -o "ro,cache=loose,$p9" root /host || fail "mount the host's root"
    for filesystem in proc sys dev; do
        $busybox mount --move "/$filesystem" "/host/$filesystem"
    done
    for directory in run tmp var/tmp; do
        $busybox mount -t tmpfs -o mode=1777 "$directory" "/host/$directory" || fail "tmpfs on /$directory"
    done
    $busybox mkdir -p /host/run/vm/bin /host/run/vm/kernel /host/run/lock
    $busybox cp $busybox /init /mounts /host/run/vm/
    $busybox mount -t 9p -o "ro,cache=loose,$p9" kernel /host/run/vm/kernel || fail "mount the kernel's directory"
    while read -r tag mode path; do
        cache=loose
        # What is shared must be there for the host as soon as it is written: from 6.8 on (netfs) mmap writes it late.
        [ "$mode" = rw ] && case $($busybox uname -r) in
            [0-5].* | 6.[0-7].*) cache=mmap ;;
            *) cache=none ;;
        esac
        $busybox mkdir -p "/host$path" 2>/dev/null
        $busybox mount -t 9p -o "$mode,cache=$cache,$p9" "$tag" "/host$path" || fail "mount $path"
    done </mounts
    exec $busybox switch_root /host /run/vm/busybox sh /run/vm/init inside
    fail "switch_root"
fi

busybox=/run/vm/busybox
kernel=/run/vm/kernel
mount=$busybox\ mount
for directory in /dev/pts /dev/shm; do $busybox mkdir -p $directory; done
$mount -t devpts -o ptmxmode=0666 devpts /dev/pts
$mount -t tmpfs shm /dev/shm
$mount -t securityfs securityfs /sys/kernel/security
$mount -t tracefs tracefs /sys/kernel/tracing
$mount -t debugfs debugfs /sys/kernel/debug
$mount -t bpf bpf /sys/fs/bpf
$mount -t cgroup2 cgroup2 /sys/fs/cgroup
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    $busybox ln -sf "/proc/self/${link#*:}" "/dev/${link%%:*}"
done

# The kernel's modules, for modprobe and for the kernel's own requests, also where the host has no /lib/modules.
printf '#!%s sh\nexec /sbin/modprobe -d %s "$@"\n' $busybox $kernel >/run/vm/bin/modprobe
printf '#!%s sh\nexec /sbin/modinfo -b %s "$@"\n' $busybox $kernel >/run/vm/bin/modinfo
$busybox chmod 755 /run/vm/bin/modprobe /run/vm/bin/modinfo
echo /run/vm/bin/modprobe >/proc/sys/kernel/modprobe
[ -d /lib/modules ] && $mount --bind $kernel/lib/modules /lib/modules
ulimit -l unlimited 2>/dev/null
ulimit -n 65536 2>/dev/null
$busybox ip link set lo up
$busybox hostname fabrictap-vm

share=
while read -r tag _ path; do
    [ "$tag" = share ] && share=$path
done </run/vm/mounts

port=
for name in /sys/class/virtio-ports/*/name; do
    [ "$($busybox cat "$name")" = fabrictap ] && port=/dev/$($busybox basename "${name%/name}")
done
[ -n "$port" ] || fail "no virtio-serial port named fabrictap"
exec 3<>"$port"

job() {
    cd "$share/jobs/$1" || return
    $busybox setsid $busybox sh ./command >stdout 2>stderr </dev/null 3>&- &
    echo "pid $1 $!" >&3
    wait $!
    echo "exit $1 $?" >&3
}

# A job leads its session: what it has started goes with it. (Debian's busybox has no pkill.)
signal_session() {
    again=yes
    while [ $again = yes ]; do
        again=no
        for process in /proc/[0-9]*; do
            { read -r stat <"$process/stat"; } 2>/dev/null || continue
            # shellcheck disable=SC2086  # after the name, which may hold blanks: state, parent, group, session
            set -- "$1" "$2" ${stat##*) }
            [ "$6" = "$1" ] && [ "$3" != Z ] && kill "-$2" "${process#/proc/}" 2>/dev/null || continue
            [ "$2" = 9 ] && again=yes # one that forked just then
        done
    done
}

serve() {
    echo ready >&3
    while read -r request id argument <&3; do
        case $request in
            start) job "$id" & ;;
            signal) signal_session "$id" "$argument" & ;;
            off) break ;;
        esac
    done
}

# In the background, because a shell that waits also reaps: orphans of the guest come to PID 1.
serve &
wait $!
$busybox poweroff -f
