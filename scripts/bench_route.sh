#!/usr/bin/env bash
# iperf3 between two namespaces, routed by the kernel over veth pairs and by the engine over two of its kernel interfaces; prints both and
# their ratio. Needs root, iperf3, and a release build (cargo build --release -p vwire-dataplane).
#   scripts/bench_route.sh [--seconds N] [--engine PROGRAM]
. "$(dirname "$0")/lib.sh"

SECONDS_EACH=5
ENGINE="$ROOT/target/release/vwire-dataplane"
while [ $# -gt 0 ]; do
    case $1 in
        --seconds) SECONDS_EACH=$2; shift 2 ;;
        --engine) ENGINE=$2; shift 2 ;;
        *) echo "bench_route.sh: $1 is not known" >&2; exit 1 ;;
    esac
done
[ -x "$ENGINE" ] || { echo "$ENGINE is missing: cargo build --release -p vwire-dataplane" >&2; exit 1; }

WORK=$(mktemp -d)
undo rm -rf "$WORK"
A=vw-route-$$-a B=vw-route-$$-b R=vw-route-$$-r
for space in "$A" "$B" "$R"; do
    ip netns add "$space"
    undo ip netns del "$space"
    ip -n "$space" link set lo up
done

# Routes of the two hosts: a gateway on the link, and all else behind it.
point() { ip -n "$1" route replace 10.61.0.1 dev "$2"; ip -n "$1" route replace 10.61.0.0/16 via 10.61.0.1; }

# Gigabits a second from A to B.
measure() {
    ip netns exec "$B" iperf3 -s -1 -I "$WORK/server.pid" >/dev/null &
    local server=$!
    until ip netns exec "$B" ss -Hltn 'sport = :5201' | grep -q .; do sleep 0.05; done
    ip netns exec "$A" iperf3 -J -t "$SECONDS_EACH" -c 10.61.2.2 >"$WORK/report.json"
    wait "$server"
    sed -n '/"sum_received"/,/}/s/.*"bits_per_second":[^0-9]*\([0-9.e+]*\).*/\1/p' "$WORK/report.json" |
        awk '{ printf "%.2f", $1 / 1e9 }'
}

# The kernel: A and B on veth pairs to a namespace that routes.
ip netns exec "$R" sysctl -qw net.ipv4.ip_forward=1
for host in 1 2; do
    space=$([ "$host" = 1 ] && echo "$A" || echo "$B")
    ip link add "v$host" netns "$R" type veth peer name v0 netns "$space"
    ip -n "$space" addr add "10.61.$host.2/32" dev v0
    ip -n "$space" link set v0 up
    ip -n "$R" link set "v$host" up
    ip -n "$R" addr add 10.61.0.1/32 dev "v$host"
    ip -n "$R" route add "10.61.$host.2" dev "v$host"
    point "$space" v0
done
KERNEL=$(measure)
ip -n "$A" link del v0
ip -n "$B" link del v0

# The engine.
{
    printf '[stats]\npath = "%s/stats"\n[api]\nsocket = "%s/api.sock"\n' "$WORK" "$WORK"
    printf '[[domain]]\nname = "net"\ngateways = ["10.61.0.1"]\n'
    for host in 1 2; do
        printf '[[domain.port]]\nport = "k%s"\n[[domain.route]]\nprefix = "10.61.%s.2/32"\nport = "k%s"\n' $host $host $host
    done
    printf '[[port]]\nname = "k1"\nkind = "kernel"\nifname = "r0"\nnetns = "/run/netns/%s"\naddresses = ["10.61.1.2/32"]\n' "$A"
    printf '[[port]]\nname = "k2"\nkind = "kernel"\nifname = "r0"\nnetns = "/run/netns/%s"\naddresses = ["10.61.2.2/32"]\n' "$B"
} >"$WORK/engine.toml"
"$ENGINE" --config "$WORK/engine.toml" &
PID=$!
undo kill "$PID"
until [ -S "$WORK/api.sock" ] && ip -n "$B" link show r0 >/dev/null 2>&1; do
    kill -0 "$PID" || exit 1
    sleep 0.05
done
point "$A" r0
point "$B" r0
until ip netns exec "$A" ping -qc 1 -W 1 10.61.2.2 >/dev/null; do sleep 0.05; done
ROUTED=$(measure)
echo "iperf3, one TCP stream, ${SECONDS_EACH} s: kernel over veth $KERNEL Gbit/s, engine $ROUTED Gbit/s, ratio $(awk "BEGIN { printf \"%.2f\", $ROUTED / $KERNEL }")"
"$ENGINE" routes --api "$WORK/api.sock" --domain net
