#!/usr/bin/env bash
# Kernel interfaces, measured with iperf3 beside the kernel's own devices, all in the same run and in turn:
#   tap → engine → tap                      beside a veth pair
#   tap → engine → VXLAN → engine → tap     beside the kernel's vxlan device, over the same kind of veth underlay
# Prints the median of the rounds and the ratios. TCP is one stream; UDP is 1400-byte and 64-byte payloads as fast as the sender
# can, counted at the receiver.
#   scripts/bench_kernel.sh [--rounds 3] [--seconds 3] [BINARY]     (default target/release/vwire-dataplane)
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/lib_bench.sh"

ROUNDS=3
SECONDS_EACH=3
bench_options "$@"
BINARY=${REST[0]:-$ROOT/target/release/vwire-dataplane}

need_root
need_packages iproute2 iperf3
modprobe -a tun vxlan 2>/dev/null || true
[ -x "$BINARY" ] || { say "no engine at $BINARY; build it with: cargo build --release -p vwire-dataplane"; exit 1; }

bench_files
ID=vwk$$
# More workers than cores less one would only take turns; with two cores engine, client and server share them as they like.
CORE=$(($(nproc) - 1))

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

kernel_port() {
    printf '[[port]]\nname = "%s"\nkind = "kernel"\nifname = "nsm-1"\nnetns = "/run/netns/%s"\naddresses = ["%s/24"]\nmtu = %s\n' \
        "$1" "$ID-$2" "$3" "$4"
}

set_up() {
    local ns
    for ns in v1 v2 k1 k2 node node1 node2 tap1 tap2 pod1 pod2; do netns $ns; done
    veth v1 v2 10.70.1 1500
    veth k1 k2 10.70.2 1500
    vxlan_device k1 10.70.2.1 10.70.2.2 10.70.3.1
    vxlan_device k2 10.70.2.2 10.70.2.1 10.70.3.2
    { workers local "$CORE" adaptive; kernel_port a tap1 10.70.4.1 1500; kernel_port b tap2 10.70.4.2 1500; xconnect a b; } >"$RUN/local.toml"
    veth node1 node2 10.70.5 1500
    { workers one 0 adaptive; kernel_port k pod1 10.70.6.1 1450; vxlan_port t 42 10.70.5.1 10.70.5.2; xconnect k t; } >"$RUN/one.toml"
    { workers two "$CORE" adaptive; kernel_port k pod2 10.70.6.2 1450; vxlan_port t 42 10.70.5.2 10.70.5.1; xconnect k t; } >"$RUN/two.toml"
    engine local "$ID-node"
    engine one "$ID-node1"
    engine two "$ID-node2"
    for ns in v1:10.70.1 k1:10.70.3 tap1:10.70.4 pod1:10.70.6; do
        wait_for 10 "the path from ${ns%:*}" reachable "$ID-${ns%:*}" "${ns#*:}.2"
    done
}

round() {
    local kind args
    for kind in tcp udp-1400 udp-64; do
        case $kind in
            tcp) args=() ;;
            udp-*) args=(-u -b 0 -l "${kind#udp-}") ;;
        esac
        iperf_figure "$kind veth" "$ID-v1" "$ID-v2" 10.70.1.2 "${args[@]}"
        iperf_figure "$kind tap" "$ID-tap1" "$ID-tap2" 10.70.4.2 "${args[@]}"
        iperf_figure "$kind vxlan" "$ID-k1" "$ID-k2" 10.70.3.2 "${args[@]}"
        iperf_figure "$kind tap-vxlan" "$ID-pod1" "$ID-pod2" 10.70.6.2 "${args[@]}"
    done
}

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
