#!/usr/bin/env bash
# AF_XDP ports on veth pairs (copy mode: a veth has no other), beside what reaches an existing interface without them: kernel taps and
# a bridge. All in the same run and in turn; medians of the rounds.
#   memif → port ~ port → memif     frames through two ports whose interfaces are joined: a veth pair, or two taps on a bridge
#   memif → port                    frames out to a host's interface, counted there
#   host → port → port → host       iperf3 between two hosts, each on a veth pair; with taps, each pair's near end is on a bridge with one
#   scripts/bench_af_xdp.sh [--rounds 3] [--seconds 3]      (builds target/release/{vwire-dataplane,traffic})
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/lib_bench.sh"

ROUNDS=3
SECONDS_EACH=3
bench_options "$@"
no_more_options

need_root
need_rust
need_packages iproute2 iperf3
modprobe -a tun veth bridge 2>/dev/null || true
BIN=$ROOT/target/release
BINARY=$BIN/vwire-dataplane
step "build" cargo build --release --locked --manifest-path "$ROOT/Cargo.toml" -p vwire-dataplane -p vwire-benches --bins

bench_files
ID=vwx$$
CORE=$(($(nproc) - 1))

# quiet NAME: a namespace in which nothing speaks by itself.
quiet() {
    netns "$1"
    ip netns exec "$ID-$1" sysctl -qw net.ipv6.conf.default.disable_ipv6=1
}

# veth NS NAME NS NAME: joins two namespaces (or one to itself).
veth() {
    ip -n "$ID-$1" link add "$2" type veth peer name "$4" netns "$ID-$3"
    ip -n "$ID-$1" link set "$2" up
    ip -n "$ID-$3" link set "$4" up
}

# host NS ADDRESS: its eth0 gets it.
host() { ip -n "$ID-$1" addr add "$2/24" dev eth0; }

# bridge NAME PORT...: in the namespace of the interfaces.
bridge() {
    local name=$1 port
    shift
    ip -n "$ID-node" link add "$name" type bridge
    ip -n "$ID-node" link set "$name" up
    for port in "$@"; do ip -n "$ID-node" link set "$port" master "$name"; done
}

memif() { memif_port "$1" "$1.sock"; }
nic() { printf '[[port]]\nname = "%s"\nkind = "af_xdp"\nifname = "%s"\n' "$1" "$1"; }
tap() { printf '[[port]]\nname = "%s"\nkind = "kernel"\nifname = "%s"\n' "$1" "$1"; }

# node_engine NAME: in the node's namespace, with the ports read. Reads `< <(…)` and not a pipe: see `engine`.
node_engine() {
    { workers "$1" "$CORE" adaptive; cat; } >"$RUN/$1.toml"
    engine "$1" "$ID-node"
}

set_up() {
    local ns
    for ns in node out1 out2 x1 x2 t1 t2 v1 v2; do quiet $ns; done
    # Two ports joined.
    veth node xa node xb
    node_engine joined-af-xdp < <(memif m1; memif m2; nic xa; nic xb; xconnect m1 xa; xconnect xb m2)
    node_engine joined-tap < <(memif m3; memif m4; tap ta; tap tb; xconnect m3 ta; xconnect tb m4)
    bridge br0 ta tb
    # Out to a host.
    veth out1 eth0 node xo
    veth out2 eth0 node vo
    node_engine out-af-xdp < <(memif m5; nic xo; xconnect m5 xo)
    node_engine out-tap < <(memif m6; tap to; xconnect m6 to)
    bridge br1 to vo
    # Between hosts.
    veth x1 eth0 node x1
    veth x2 eth0 node x2
    node_engine hosts-af-xdp < <(nic x1; nic x2; xconnect x1 x2)
    veth t1 eth0 node v1
    veth t2 eth0 node v2
    node_engine hosts-tap < <(tap k1; tap k2; xconnect k1 k2)
    bridge br2 k1 v1
    bridge br3 k2 v2
    veth v1 eth0 v2 eth0
    host x1 10.70.1.1; host x2 10.70.1.2; host t1 10.70.2.1; host t2 10.70.2.2; host v1 10.70.3.1; host v2 10.70.3.2
    for ns in x1:10.70.1 t1:10.70.2 v1:10.70.3; do
        wait_for 10 "the path from ${ns%:*}" reachable "$ID-${ns%:*}" "${ns#*:}.2"
    done
}

# received NS: frames that its eth0 has had so far.
received() { ip netns exec "$ID-$1" cat /proc/net/dev | awk '$1 == "eth0:" {print $3}'; }

# out ROW NS SOCKET SIZE: frames a second that arrive at a host.
out() {
    local before after start end
    before=$(received "$2"); start=$(date +%s.%N)
    traffic --from "$RUN/$3.sock" --size "$4" >/dev/null
    after=$(received "$2"); end=$(date +%s.%N)
    figure "$1" "$(awk -v n=$((after - before)) -v t0="$start" -v t1="$end" 'BEGIN {printf "%.3f", n / (t1 - t0) / 1e6}')"
}

round() {
    local size kind args
    for size in 64 1500; do
        figure "joined $size af_xdp" "$(traffic --from "$RUN/m1.sock" --to "$RUN/m2.sock" --size $size | field mpps)"
        figure "joined $size tap" "$(traffic --from "$RUN/m3.sock" --to "$RUN/m4.sock" --size $size | field mpps)"
        out "out $size af_xdp" out1 m5 $size
        out "out $size tap" out2 m6 $size
    done
    for kind in tcp udp-64; do
        args=()
        [ $kind = tcp ] || args=(-u -b 0 -l 64)
        iperf_figure "hosts $kind af_xdp" "$ID-x1" "$ID-x2" 10.70.1.2 "${args[@]}"
        iperf_figure "hosts $kind tap" "$ID-t1" "$ID-t2" 10.70.2.2 "${args[@]}"
        iperf_figure "hosts $kind veth" "$ID-v1" "$ID-v2" 10.70.3.2 "${args[@]}"
    done
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN {if (b > 0) printf "%.2f", a / b; else print "-"}'; }

row() { # TITLE KEY
    local af tap
    af=$(of "$2 af_xdp"); tap=$(of "$2 tap")
    say "$(printf '%-44s %10s %10s %7s %10s' "$1" "$af" "$tap" "$(ratio "$af" "$tap")" "${3:-}")"
}

table() {
    say "" "AF_XDP on veth (copies), median of $ROUNDS rounds of $SECONDS_EACH s"
    say "$(printf '%-44s %10s %10s %7s %10s' '' AF_XDP 'tap+bridge' ratio 'bare veth')"
    row "memif → port ~ port → memif,   64 B, Mpps" "joined 64"
    row "memif → port ~ port → memif, 1500 B, Mpps" "joined 1500"
    row "memif → port → host,   64 B, Mpps" "out 64"
    row "memif → port → host, 1500 B, Mpps" "out 1500"
    row "host → port → port → host, TCP, Mbit/s" "hosts tcp" "$(of "hosts tcp veth")"
    row "host → port → port → host, UDP 64 B, Mbit/s" "hosts udp-64" "$(of "hosts udp-64 veth")"
}

set_up
for _ in $(seq "$ROUNDS"); do round; done
table
