#!/usr/bin/env bash
# iperf3 between two namespaces, routed by the kernel over veth pairs and, in turn, by the engine over two of its kernel interfaces; prints
# each round's pair, and the middle ratio. Needs root, iperf3, and a release build (cargo build --release -p vwire-dataplane).
#   scripts/bench_route.sh [--seconds N] [--rounds N] [--streams N] [--engine PROGRAM]
. "$(dirname "$0")/lib.sh"

SECONDS_EACH=5 ROUNDS=3 STREAMS=1
ENGINE="$ROOT/target/release/vwire-dataplane"
while [ $# -gt 0 ]; do
    case $1 in
        --seconds) SECONDS_EACH=$2; shift 2 ;;
        --rounds) ROUNDS=$2; shift 2 ;;
        --streams) STREAMS=$2; shift 2 ;;
        --engine) ENGINE=$2; shift 2 ;;
        *) echo "bench_route.sh: $1 is not known" >&2; exit 1 ;;
    esac
done
[ -x "$ENGINE" ] || { echo "$ENGINE is missing: cargo build --release -p vwire-dataplane" >&2; exit 1; }

WORK=$(mktemp -d)
undo rm -rf "$WORK"
# Hosts 1 and 2 of either: A and B behind the kernel's router R, C and D behind the engine.
for space in a b r c d; do
    ip netns add "vw-route-$$-$space"
    undo ip netns del "vw-route-$$-$space"
    ip -n "vw-route-$$-$space" link set lo up
done
space() { echo "vw-route-$$-$1"; }

# Routes of a host: a gateway on the link, and all else behind it.
point() { ip -n "$1" route replace 10.61.0.1 dev "$2"; ip -n "$1" route replace 10.61.0.0/16 via 10.61.0.1; }

# Gigabits a second from the first host to the second.
measure() {
    ip netns exec "$2" iperf3 -s -1 -I "$WORK/server.pid" >/dev/null &
    local server=$!
    until ip netns exec "$2" ss -Hltn 'sport = :5201' | grep -q .; do sleep 0.05; done
    ip netns exec "$1" iperf3 -J -t "$SECONDS_EACH" -P "$STREAMS" -c 10.61.2.2 >"$WORK/report.json"
    wait "$server"
    sed -n '/"sum_received"/,/}/s/.*"bits_per_second":[^0-9]*\([0-9.e+]*\).*/\1/p' "$WORK/report.json" |
        awk '{ printf "%.2f", $1 / 1e9 }'
}

# The kernel: A and B on veth pairs to a namespace that routes.
ip netns exec "$(space r)" sysctl -qw net.ipv4.ip_forward=1
for host in 1 2; do
    place=$(space "$([ "$host" = 1 ] && echo a || echo b)")
    ip link add "v$host" netns "$(space r)" type veth peer name v0 netns "$place"
    ip -n "$place" addr add "10.61.$host.2/32" dev v0
    ip -n "$place" link set v0 up
    ip -n "$(space r)" link set "v$host" up
    ip -n "$(space r)" addr add 10.61.0.1/32 dev "v$host"
    ip -n "$(space r)" route add "10.61.$host.2" dev "v$host"
    point "$place" v0
done

# The engine.
{
    printf '[stats]\npath = "%s/stats"\n[api]\nsocket = "%s/api.sock"\n' "$WORK" "$WORK"
    printf '[[domain]]\nname = "net"\ngateways = ["10.61.0.1"]\n'
    for host in 1 2; do
        printf '[[domain.port]]\nport = "k%s"\n[[domain.route]]\nprefix = "10.61.%s.2/32"\nport = "k%s"\n' $host $host $host
    done
    printf '[[port]]\nname = "k1"\nkind = "kernel"\nifname = "r0"\nnetns = "/run/netns/%s"\naddresses = ["10.61.1.2/32"]\n' "$(space c)"
    printf '[[port]]\nname = "k2"\nkind = "kernel"\nifname = "r0"\nnetns = "/run/netns/%s"\naddresses = ["10.61.2.2/32"]\n' "$(space d)"
} >"$WORK/engine.toml"
"$ENGINE" --config "$WORK/engine.toml" &
PID=$!
undo kill "$PID"
until [ -S "$WORK/api.sock" ] && ip -n "$(space d)" link show r0 >/dev/null 2>&1; do
    kill -0 "$PID" || exit 1
    sleep 0.05
done
point "$(space c)" r0
point "$(space d)" r0
# The first packet waits for its next hop: one ping is enough.
ip netns exec "$(space c)" ping -qc 1 -W 10 10.61.2.2 >/dev/null

echo "iperf3, $STREAMS TCP stream(s), $SECONDS_EACH s each, Gbit/s; load at the start $(cut -d' ' -f1-3 /proc/loadavg)"
for round in $(seq "$ROUNDS"); do
    KERNEL=$(measure "$(space a)" "$(space b)")
    ROUTED=$(measure "$(space c)" "$(space d)")
    awk "BEGIN { printf \"%.2f\n\", $ROUTED / $KERNEL }" >>"$WORK/ratios"
    echo "round $round: kernel over veth $KERNEL, engine $ROUTED, ratio $(tail -n 1 "$WORK/ratios")"
done
echo "middle ratio: $(sort -n "$WORK/ratios" | sed -n "$(((ROUNDS + 1) / 2))p")"
"$ENGINE" routes --api "$WORK/api.sock" --domain net
