#!/usr/bin/env bash
# In the test VM: two Soft-RoCE devices, rxe0 (10.9.0.1 on d0) and rxe1 (10.9.0.2 on d1), on the two ends of a veth
# pair. Their traffic really crosses the pair: without the rules below the kernel would short-cut it, since both
# addresses are its own. May be run again at any time.
set -euo pipefail

modprobe -a rdma_rxe ib_uverbs rdma_ucm veth

ip link set lo up
[[ -e /sys/class/net/d0 ]] || ip link add d0 type veth peer name d1
ip addr replace 10.9.0.1/24 dev d0
ip addr replace 10.9.0.2/24 dev d1
ip link set d0 up
ip link set d1 up
for netdev in all d0 d1; do
    sysctl -qw "net.ipv4.conf.$netdev.accept_local=1" "net.ipv4.conf.$netdev.rp_filter=0" \
        "net.ipv4.conf.$netdev.arp_ignore=1"
done

# What is sent by d0 to the other end's address leaves by d0, although that address is local. The same for whoever has
# not chosen a device yet, which is how rdma_cm finds one (perftest -R); only TCP, over which programs exchange their QP
# numbers, stays on lo, so that the counters of d0 and d1 show RDMA alone.
rules=$(ip rule)
rule() {
    [[ $rules == *"$1:"* ]] || ip rule add pref "$@"
}
rule 10 oif d0 lookup 100
rule 11 oif d1 lookup 101
rule 12 ipproto tcp lookup local
rule 13 iif lo to 10.9.0.2 lookup 100
rule 14 iif lo to 10.9.0.1 lookup 101
rule 200 lookup local
[[ $rules != 0:* ]] || ip rule del pref 0
ip route replace 10.9.0.2/32 dev d0 table 100
ip route replace 10.9.0.1/32 dev d1 table 101
ip neigh replace 10.9.0.2 lladdr "$(</sys/class/net/d1/address)" dev d0
ip neigh replace 10.9.0.1 lladdr "$(</sys/class/net/d0/address)" dev d1

for pair in rxe0:d0 rxe1:d1; do
    [[ -e /sys/class/infiniband/${pair%:*} ]] || rdma link add "${pair%:*}" type rxe netdev "${pair#*:}"
done

# A port becomes ACTIVE and gets the GID of its IPv4 address (::ffff:10.9.0.x) a little after the device appears.
usable() {
    local port=/sys/class/infiniband/$1/ports/1 state gid index
    read -r state <"$port/state"
    [[ $state == *ACTIVE* ]] || return 1
    for index in {0..7}; do # of 1024, and each costs a little when emulated
        read -r gid <"$port/gids/$index" || return 1
        [[ $gid != *:ffff:0a09:$2 ]] || return 0
    done
    return 1
}
deadline=$((SECONDS + 60))
for device in "rxe0 0001" "rxe1 0002"; do
    # shellcheck disable=SC2086  # two words
    until usable $device; do
        if ((SECONDS > deadline)); then
            echo "two_devices.sh: ${device% *} is not usable after 60 s" >&2
            rdma link >&2
            exit 1
        fi
        read -rt 0.1 <> <(:) || true
    done
done
