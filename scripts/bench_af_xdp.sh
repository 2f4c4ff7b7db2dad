#!/usr/bin/env bash
# AF_XDP ports on veth pairs (copy mode: a veth has no other), beside what reaches an existing interface without them: kernel taps and
# a bridge. All in the same run and in turn; medians of the rounds.
#   memif → port ~ port → memif     frames through two ports whose interfaces are joined: a veth pair, or two taps on a bridge
#   memif → port                    frames out to a host's interface, counted there
#   host → port → port → host       iperf3 between two hosts, each on a veth pair; with taps, each pair's near end is on a bridge with one
#   scripts/bench_af_xdp.sh [--rounds 3] [--seconds 3]      (builds target/release/{vwire-dataplane,traffic})
. "$(dirname "$0")/lib.sh"

ROUNDS=3
SECONDS_EACH=3
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) ROUNDS=$2; shift 2 ;;
        --seconds) SECONDS_EACH=$2; shift 2 ;;
        *) say "no such option: $1"; exit 1 ;;
    esac
done

need_root
need_rust
need_packages iproute2 iperf3
modprobe -a tun veth bridge 2>/dev/null || true
BIN=$ROOT/target/release
step "build" cargo build --release --locked --manifest-path "$ROOT/Cargo.toml" -p vwire-dataplane -p vwire-benches --bins

RUN=$LOGS/run
FIGURES=$LOGS/af-xdp-figures
mkdir -p "$RUN"
: >"$FIGURES"
ID=vwx$$
CORE=$(($(nproc) - 1))

netns() {
    ip netns add "$ID-$1"
    undo ip netns del "$ID-$1"
    ip -n "$ID-$1" link set lo up
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

memif() { printf '[[port]]\nname = "%s"\nkind = "memif"\nrole = "server"\nsocket = "%s"\n' "$1" "$RUN/$1.sock"; }
nic() { printf '[[port]]\nname = "%s"\nkind = "af_xdp"\nifname = "%s"\n' "$1" "$1"; }
tap() { printf '[[port]]\nname = "%s"\nkind = "kernel"\nifname = "%s"\n' "$1" "$1"; }
xconnect() { printf '[[xconnect]]\nports = ["%s", "%s"]\n' "$1" "$2"; }

# engine NAME: on $RUN/NAME.toml, in the node's namespace, and nobody else's work before its own.
engine() {
    {
        printf '[workers]\ncores = [%s]\nmode = "adaptive"\n[api]\nsocket = "%s"\n[stats]\npath = "%s"\n' \
            "$CORE" "$RUN/$1.api.sock" "$RUN/$1.stats"
        cat
    } >"$RUN/$1.toml"
    nice -n -20 ip netns exec "$ID-node" "$BIN/vwire-dataplane" --config "$RUN/$1.toml" >"$LOGS/engine-$1.log" 2>&1 &
    undo stop_pid $!
    wait_for 10 "engine $1 to be ready (log: $LOGS/engine-$1.log)" test -S "$RUN/$1.api.sock"
}

set_up() {
    local ns
    for ns in node out1 out2 x1 x2 t1 t2 v1 v2; do netns $ns; done
    # Two ports joined.
    veth node xa node xb
    { memif m1; memif m2; nic xa; nic xb; xconnect m1 xa; xconnect xb m2; } | engine joined-af-xdp
    { memif m3; memif m4; tap ta; tap tb; xconnect m3 ta; xconnect tb m4; } | engine joined-tap
    bridge br0 ta tb
    # Out to a host.
    veth out1 eth0 node xo
    veth out2 eth0 node vo
    { memif m5; nic xo; xconnect m5 xo; } | engine out-af-xdp
    { memif m6; tap to; xconnect m6 to; } | engine out-tap
    bridge br1 to vo
    # Between hosts.
    veth x1 eth0 node x1
    veth x2 eth0 node x2
    { nic x1; nic x2; xconnect x1 x2; } | engine hosts-af-xdp
    veth t1 eth0 node v1
    veth t2 eth0 node v2
    { tap k1; tap k2; xconnect k1 k2; } | engine hosts-tap
    bridge br2 k1 v1
    bridge br3 k2 v2
    veth v1 eth0 v2 eth0
    host x1 10.70.1.1; host x2 10.70.1.2; host t1 10.70.2.1; host t2 10.70.2.2; host v1 10.70.3.1; host v2 10.70.3.2
    for ns in x1:10.70.1 t1:10.70.2 v1:10.70.3; do
        wait_for 10 "the path from ${ns%:*}" reachable "$ID-${ns%:*}" "${ns#*:}.2"
    done
}

# reachable NETNS ADDRESS: a TCP connection is refused by the far kernel, not lost.
reachable() {
    local answer
    answer=$(timeout 2 ip netns exec "$1" bash -c "exec 3<>/dev/tcp/$2/9" 2>&1) || true
    case $answer in *refused*) return 0 ;; *) return 1 ;; esac
}

figure() { printf '%s\t%s\n' "$1" "$2" >>"$FIGURES"; }
traffic() { nice -n -20 "$BIN/traffic" --core 0 --seconds "$SECONDS_EACH" "$@"; }
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p"; }

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

# hosts ROW FROM TO ADDRESS IPERF-ARGS...: Mbit/s at the receiver.
hosts() {
    local row=$1 from=$2 to=$3 address=$4 line server
    shift 4
    nice -n -20 ip netns exec "$ID-$to" iperf3 -s -1 -B "$address" >"$LOGS/iperf-server.log" 2>&1 &
    server=$!
    wait_for 5 "iperf3's server" listening "$ID-$to"
    if line=$(nice -n -20 timeout $((SECONDS_EACH + 15)) ip netns exec "$ID-$from" iperf3 -c "$address" -t "$SECONDS_EACH" -f m "$@" | grep receiver); then
        figure "$row" "$(awk '{for (i = 1; i < NF; i++) if ($(i + 1) == "Mbits/sec") print $i}' <<<"$line")"
    else
        say "iperf3 failed for: $row"
    fi
    stop_pid "$server"
    wait "$server" 2>/dev/null || true
}

listening() { ip netns exec "$1" ss -Hltn 'sport = :5201' | grep -q 5201; }

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
        hosts "hosts $kind af_xdp" x1 x2 10.70.1.2 "${args[@]}"
        hosts "hosts $kind tap" t1 t2 10.70.2.2 "${args[@]}"
        hosts "hosts $kind veth" v1 v2 10.70.3.2 "${args[@]}"
    done
}

median() { sort -g | awk '{v[NR]=$1} END {print NR ? (NR%2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2) : 0}'; }
of() { awk -F'\t' -v r="$1" '$1==r {print $2}' "$FIGURES" | median; }
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
