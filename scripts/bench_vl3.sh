#!/usr/bin/env bash
# iperf3 between two clients of a virtual network with an endpoint each, on two nodes, and in turn between the same two clients by the
# kernel's own routing over the same nodes and the same veth underlay between them:
#   client ─ tap ─ node's engine ─ memif ─ endpoint's engine (routes) ─ memif ─ node's engine ── VXLAN ── … the same way back up ─ client
#   client ─ veth ─ node's kernel (routes) ── the nodes' veths and bridge ── node's kernel (routes) ─ veth ─ client
# Both with the virtual network's MTU. TCP is one stream; UDP is datagrams of 1300 and of 64 bytes as fast as the sender can, counted
# at the receiver. Prints the median of the rounds and the ratio, for IPv4 and IPv6. Needs root; builds the programs (release) unless
# VWIRE_BIN=DIR says where they are. Nothing is left of it, however it ends.
#   scripts/bench_vl3.sh [--rounds 5] [--seconds 3]
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/lib_bench.sh"
. "$ROOT/scripts/lib_vl3.sh"

ROUNDS=5
SECONDS_EACH=3
bench_options "$@"
no_more_options

need_root
need_packages iproute2 iperf3 jq curl
modprobe tun 2>/dev/null || true
vwire_bin

LAB=vl3bench-$$
bench_files
KINDS=(tcp udp-1300 udp-64)
FAMILIES=(v4 v6)

space() { printf 'vw-%s-%s' "$LAB" "$1"; }

topology() {
    cat <<YAML
name: $LAB
domains:
  - name: cluster
    ipam: [172.16.0.0/16, "fd16:1::/64"]
    nodes:
      - name: node-1
        vl3: [{name: vl3-1, services: [net, net-1]}]
        clients: [{name: one, services: ["kernel://net-1/nsm-1"]}]
      - name: node-2
        vl3: [{name: vl3-2, services: [net, net-2]}]
        clients: [{name: two, services: ["kernel://net-2/nsm-1"]}]
checks:
  - peers: {of: vl3-1, count: 1}
  - reach: {count: 3}
YAML
}

lab_up() {
    topology >"$LOGS/lab.yaml"
    undo "$BIN/vwire" lab down "$LAB" --run "$LABS"
    nice -n -20 "$BIN/vwire" lab up "$LOGS/lab.yaml" --run "$LABS"
    "$BIN/vwire" lab check "$LAB" --run "$LABS"
    # Those that the network gave, by client and version of IP.
    for client in one two; do
        vl3_addresses "$LAB" "$client" . | while read -r address; do
            case $address in *:*) say "$client v6 $address" ;; *) say "$client v4 $address" ;; esac
        done
    done >"$LOGS/addresses"
}

# The virtual network's MTU, which the kernel's way gets, too.
mtu() { ip -n "$(space one)" -j link show nsm-1 | jq '.[0].mtu'; }

underlay() { ip -n "$(space "$1")" -j -4 addr show eth0 | jq -r '.[0].addr_info[0].local'; }

# A veth from each client to its node, and routes between the nodes.
kernel_way() {
    local side other client node size
    size=$(mtu)
    for side in 1 2; do
        other=$((3 - side)) node=$(space "node-$side") client=$(space "$([ $side = 1 ] && echo one || echo two)")
        ip netns exec "$node" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        ip -n "$node" link add k0 mtu "$size" type veth peer name k0 mtu "$size" netns "$client"
        ip -n "$node" addr add 10.98.$side.1/24 dev k0
        ip -n "$node" addr add fd98:$side::1/64 dev k0 nodad
        ip -n "$node" addr add fd98::$side/64 dev eth0 nodad
        ip -n "$client" addr add 10.98.$side.2/24 dev k0
        ip -n "$client" addr add fd98:$side::2/64 dev k0 nodad
        ip -n "$node" link set k0 up
        ip -n "$client" link set k0 up
        ip -n "$node" route add 10.98.$other.0/24 via "$(underlay "node-$other")"
        ip -n "$node" route add fd98:$other::/64 via fd98::$other
        ip -n "$client" route add 10.98.0.0/16 via 10.98.$side.1
        ip -n "$client" route add fd98::/16 via fd98:$side::1
    done
    for address in 10.98.2.2 fd98:2::2; do
        wait_for 10 "the kernel's way to $address" ip netns exec "$(space one)" ping -qc 1 -W 1 "$address"
    done
}

# far WAY FAMILY: the second client's address there.
far() {
    case $1-$2 in
    kernel-v4) say 10.98.2.2 ;;
    kernel-v6) say fd98:2::2 ;;
    *) sed -n "s/^two $2 //p" "$LOGS/addresses" ;;
    esac
}

# measure KIND FAMILY WAY: notes the receiver's Gbit/s, or its millions of datagrams a second.
measure() {
    local kind=$1 family=$2 way=$3 address report=$LOGS/report.json args=()
    case $kind in udp-*) args=(-u -b 0 -l "${kind#udp-}") ;; esac
    address=$(far "$way" "$family")
    [ -n "$address" ] || { say "the second client has no $family address there: $way"; return 1; }
    iperf "$(space one)" "$(space two)" "$address" -J "${args[@]}" >"$report" || true
    # A datagram's figure is what came, not what was sent.
    jq -er --arg kind "$kind" --arg family "$family" --arg way "$way" '
        if .error then error("\($kind) \($family) \($way): iperf3: \(.error)") else . end |
        .end as $all | ($all.sum_received.seconds // $all.sum.seconds) as $seconds |
        (if $kind == "tcp" then $all.sum_received.bytes else ($all.sum.packets - $all.sum.lost_packets) end) as $came |
        if $came > 0 then . else error("\($kind) \($family) \($way): nothing came") end |
        [$kind, $family, $way, (if $kind == "tcp" then $came * 8 / 1e9 else $came / 1e6 end) / $seconds] | @tsv' \
        "$report" >>"$FIGURES"
    printf '  %-9s %s %-7s %.4f\n' "$kind" "$family" "$way" "$(tail -n 1 "$FIGURES" | cut -f 4)"
}

round() {
    local kind family way
    for kind in "${KINDS[@]}"; do
        for family in "${FAMILIES[@]}"; do
            for way in kernel vl3; do measure "$kind" "$family" "$way"; done
        done
    done
}

table() {
    local kind family unit
    say "" "iperf3 across two vL3 endpoints, received, median of $ROUNDS x $SECONDS_EACH s, MTU $(mtu), load $(cut -d' ' -f1-3 /proc/loadavg)"
    printf '%-12s %-3s %-5s %10s %10s %8s\n' "" "" "" kernel vL3 ratio
    for kind in "${KINDS[@]}"; do
        unit=Mpps
        [ "$kind" != tcp ] || unit=Gb/s
        for family in "${FAMILIES[@]}"; do
            awk -v k="$kind" -v f="$family" -v u="$unit" -v a="$(of "$kind" "$family" kernel)" -v b="$(of "$kind" "$family" vl3)" \
                'BEGIN { printf "%-12s %-3s %-5s %10.4f %10.4f %8.3f\n", k, f, u, a, b, (a > 0 ? b / a : 0) }'
        done
    done
}

step "a lab of two nodes, an endpoint and a client on each" lab_up
step "the kernel's way beside it" kernel_way
for ((i = 1; i <= ROUNDS; i++)); do
    STEP="round $i of $ROUNDS" STEP_LOG=""
    say "== $STEP, Gbit/s and millions of datagrams a second"
    round
done
table
