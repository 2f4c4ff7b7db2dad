#!/usr/bin/env bash
# Kernel interfaces, measured with iperf3 beside the kernel's own devices, all in the same run and in turn:
#   tap → engine → tap                      beside a veth pair
#   tap → engine → VXLAN → engine → tap     beside the kernel's vxlan device, over the same kind of veth underlay
# Prints the median of the rounds and the ratios. TCP is one stream; UDP is 1400-byte and 64-byte payloads as fast as the sender
# can, counted at the receiver.
#   scripts/bench_kernel.sh [--rounds 3] [--seconds 3] [BINARY]     (default target/release/vwire-dataplane)
. "$(dirname "$0")/lib.sh"

ROUNDS=3
SECONDS_EACH=3
BINARY=$ROOT/target/release/vwire-dataplane
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) ROUNDS=$2; shift 2 ;;
        --seconds) SECONDS_EACH=$2; shift 2 ;;
        *) BINARY=$1; shift ;;
    esac
done

need_root
need_packages iproute2 iperf3
modprobe -a tun vxlan 2>/dev/null || true
[ -x "$BINARY" ] || { say "no engine at $BINARY; build it with: cargo build --release -p vwire-dataplane"; exit 1; }

RUN=$LOGS/run
FIGURES=$LOGS/kernel-figures
mkdir -p "$RUN"
: >"$FIGURES"
ID=vwk$$
# More workers than cores less one would only take turns; with two cores engine, client and server share them as they like.
CORE=$(($(nproc) - 1))

netns() {
    ip netns add "$ID-$1"
    undo ip netns del "$ID-$1"
    ip -n "$ID-$1" link set lo up
}

# veth A B PREFIX MTU: joins two namespaces; PREFIX.1 and PREFIX.2 are their addresses.
veth() {
    ip -n "$ID-$1" link add "to-$2" mtu "$4" type veth peer name "to-$1" mtu "$4" netns "$ID-$2"
    ip -n "$ID-$1" addr add "$3.1/24" dev "to-$2"
    ip -n "$ID-$2" addr add "$3.2/24" dev "to-$1"
    ip -n "$ID-$1" link set "to-$2" up
    ip -n "$ID-$2" link set "to-$1" up
}

# vxlan_device NS LOCAL REMOTE ADDRESS
vxlan_device() {
    ip -n "$ID-$1" link add vx0 type vxlan id 99 local "$2" remote "$3" dstport 4790 nolearning
    ip -n "$ID-$1" addr add "$4/24" dev vx0
    ip -n "$ID-$1" link set vx0 up
}

head_of() {
    printf '[workers]\ncores = [%s]\nmode = "adaptive"\n[api]\nsocket = "%s"\n[stats]\npath = "%s"\n' \
        "$2" "$RUN/$1.api.sock" "$RUN/$1.stats"
}

kernel_port() {
    printf '[[port]]\nname = "%s"\nkind = "kernel"\nifname = "nsm-1"\nnetns = "/run/netns/%s"\naddresses = ["%s/24"]\nmtu = %s\n' \
        "$1" "$ID-$2" "$3" "$4"
}

vxlan_port() {
    printf '[[port]]\nname = "t"\nkind = "vxlan"\nvni = 42\nlocal = "%s"\nremote = "%s"\nport = 4789\n' "$1" "$2"
}

xconnect() { printf '[[xconnect]]\nports = ["%s", "%s"]\n' "$1" "$2"; }

# high COMMAND...: before other work on the machine; engines, clients and servers alike, so that none gains by it.
high() { nice -n -20 "$@"; }

# engine NAME NETNS
engine() {
    high ip netns exec "$ID-$2" "$BINARY" --config "$RUN/$1.toml" >"$LOGS/engine-$1.log" 2>&1 &
    undo stop_pid $!
    wait_for 10 "engine $1 to be ready (log: $LOGS/engine-$1.log)" test -S "$RUN/$1.api.sock"
}

set_up() {
    local ns
    for ns in v1 v2 k1 k2 node node1 node2 tap1 tap2 pod1 pod2; do netns $ns; done
    veth v1 v2 10.70.1 1500
    veth k1 k2 10.70.2 1500
    vxlan_device k1 10.70.2.1 10.70.2.2 10.70.3.1
    vxlan_device k2 10.70.2.2 10.70.2.1 10.70.3.2
    { head_of local "$CORE"; kernel_port a tap1 10.70.4.1 1500; kernel_port b tap2 10.70.4.2 1500; xconnect a b; } >"$RUN/local.toml"
    veth node1 node2 10.70.5 1500
    { head_of one 0; kernel_port k pod1 10.70.6.1 1450; vxlan_port 10.70.5.1 10.70.5.2; xconnect k t; } >"$RUN/one.toml"
    { head_of two "$CORE"; kernel_port k pod2 10.70.6.2 1450; vxlan_port 10.70.5.2 10.70.5.1; xconnect k t; } >"$RUN/two.toml"
    engine local node
    engine one node1
    engine two node2
    for ns in v1:10.70.1 k1:10.70.3 tap1:10.70.4 pod1:10.70.6; do
        wait_for 10 "the path from ${ns%:*}" reachable "$ID-${ns%:*}" "${ns#*:}.2"
    done
}

# reachable NETNS ADDRESS: a TCP connection is refused by the far kernel, not lost. Needs no ping on the machine.
reachable() {
    local answer
    answer=$(timeout 2 ip netns exec "$1" bash -c "exec 3<>/dev/tcp/$2/9" 2>&1) || true
    case $answer in *refused*) return 0 ;; *) return 1 ;; esac
}

# measure ROW FROM TO ADDRESS IPERF-ARGS...: notes the receiver's Mbit/s, and the lost share of datagrams.
measure() {
    local row=$1 from=$2 to=$3 address=$4 line server
    shift 4
    high ip netns exec "$ID-$to" iperf3 -s -1 -B "$address" >"$LOGS/iperf-server.log" 2>&1 &
    server=$!
    wait_for 5 "iperf3's server" listening "$ID-$to"
    if line=$(high timeout $((SECONDS_EACH + 15)) ip netns exec "$ID-$from" iperf3 -c "$address" -t "$SECONDS_EACH" -f m "$@" | grep receiver); then
        printf '%s\t%s\n' "$row" "$(awk '{for (i = 1; i < NF; i++) if ($(i + 1) == "Mbits/sec") print $i}' <<<"$line")" >>"$FIGURES"
    else
        say "iperf3 failed for: $row"
    fi
    stop_pid "$server"
    wait "$server" 2>/dev/null || true
}

listening() { ip netns exec "$1" ss -Hltn 'sport = :5201' | grep -q 5201; }

round() {
    local kind args
    for kind in tcp udp-1400 udp-64; do
        case $kind in
            tcp) args=() ;;
            udp-*) args=(-u -b 0 -l "${kind#udp-}") ;;
        esac
        measure "$kind veth" v1 v2 10.70.1.2 "${args[@]}"
        measure "$kind tap" tap1 tap2 10.70.4.2 "${args[@]}"
        measure "$kind vxlan" k1 k2 10.70.3.2 "${args[@]}"
        measure "$kind tap-vxlan" pod1 pod2 10.70.6.2 "${args[@]}"
    done
}

median() { sort -g | awk '{v[NR]=$1} END {print NR ? (NR%2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2) : 0}'; }

of() { awk -F'\t' -v r="$1" '$1==r {print $2}' "$FIGURES" | median; }

table() {
    local kind bytes
    say ""
    say "kernel interfaces, iperf3, received, median of $ROUNDS rounds of $SECONDS_EACH s"
    say "$(printf '%-13s %7s %10s %8s %14s %14s %8s' '' veth tap→tap ratio 'kernel vxlan' tap→VXLAN→tap ratio)"
    for kind in tcp udp-1400 udp-64; do
        bytes=${kind#udp-}
        awk -v k="$kind" -v b="$bytes" -v v="$(of "$kind veth")" -v t="$(of "$kind tap")" -v x="$(of "$kind vxlan")" \
            -v e="$(of "$kind tap-vxlan")" 'function ratio(a, b) {return b > 0 ? sprintf("%.2f", a / b) : "-"}
            BEGIN {
                unit = k == "tcp" ? "Gb/s" : "Mpps"; d = k == "tcp" ? 1000 : b * 8
                printf "%-8s %s %7.3f %10.3f %8s %14.3f %14.3f %8s\n", k, unit, v/d, t/d, ratio(t, v), x/d, e/d, ratio(e, x)
            }'
    done
}

step "namespaces, engines and paths" set_up
for ((i = 1; i <= ROUNDS; i++)); do step "round $i of $ROUNDS" round; done
table
