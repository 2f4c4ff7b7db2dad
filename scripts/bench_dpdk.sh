#!/usr/bin/env bash
# Ports on DPDK's drivers, measured beside testpmd on the same virtual devices, in the same run and in turn; one core forwards (both: two):
#   null - null         net_null gives empty frames without end and takes all: what forwarding itself costs. testpmd: --forward-mode=io
#   null - null, both   the same by two workers, and two of testpmd's cores, that share both devices, a queue for each
#   null - null, copy   the same with devices that copy each frame once in and once out, as a NIC's DMA touches memory
#   ring - ring         net_ring devices, each looped in itself; some thousand frames go round between them. What a frame costs when nothing
#                       allocates, frees or fills it: testpmd moves pointers and never looks at a frame, an engine does
#   null - memif        into a memif of our own (one copy) beside testpmd's net_memif; a second testpmd takes the frames and counts
#   af_packet           net_af_packet on two veths: frames of 64 bytes from a host behind the one to a host behind the other, counted there. The
#                       driver copies each frame in and out, and the forwarder's core pays for the kernel's sending, up to the far host. To put
#                       a frame into the forwarder's ring is work of the sender's core, which has more to send than is taken; what it sent is
#                       printed, too. The figure shows a driver that is mostly the kernel, and how little of it is the forwarder's
# Prints the median of the rounds in million packets a second, and the ratio. Two cores at least: one forwards, one takes. For figures
# that mean something the machine has to be quiet; the ratio holds more than the numbers.
#   scripts/bench_dpdk.sh [--rounds 3] [--seconds 3] [BINARY]
# BINARY (default target/release/vwire-dataplane) must have the feature: cargo build --release -p vwire-dataplane --features dpdk
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/lib_bench.sh"

ROUNDS=3
SECONDS_EACH=3
bench_options "$@"
BINARY=${REST[0]:-$ROOT/target/release/vwire-dataplane}

need_root
need_packages dpdk libdpdk-dev iproute2 ethtool python3 curl protobuf-compiler
modprobe veth 2>/dev/null || true
need_hugepages 200
"$BINARY" --help 2>/dev/null | grep -q '^Kinds of ports.*dpdk' || {
    say "no engine with DPDK ports at $BINARY; build it with: cargo build --release -p vwire-dataplane --features dpdk"
    exit 1
}

bench_files
# The forwarder has the last core, what takes its frames the first.
FORWARD=$(($(nproc) - 1))
WORKERS=$FORWARD
PID=
ID=vwd$$
# What the forwarder is started with: `ip netns exec NAME` if its devices are in a namespace.
INSIDE=()

# testpmd LOG CORE ARGUMENTS...: its main thread only waits, so that it may share the core. Leaves its process id in PID.
testpmd() {
    local log=$1 core=$2
    shift 2
    nice -n -20 "${INSIDE[@]}" dpdk-testpmd --lcores "0@0,1@$core" --in-memory --no-telemetry --no-pci -m 128 "$@" \
        --total-num-mbufs=16384 --stats-period 1 >"$log" 2>&1 </dev/null &
    PID=$!
    undo stop_pid "$PID"
}

# dpdk_engine PORTS [XCONNECT]: two ports, left and right, cross-connected if nothing else is said.
dpdk_engine() {
    rm -f "$RUN/stats"
    printf '[workers]\ncores = [%s]\nmode = "poll"\n[stats]\npath = "%s"\n[api]\nsocket = "%s"\n[dpdk]\nmemory = 128\n%s\n%s\n' \
        "$WORKERS" "$RUN/stats" "$RUN/api.sock" "$1" "${2:-$(xconnect left right)}" >"$RUN/engine.toml"
    nice -n -20 "${INSIDE[@]}" "$BINARY" --config "$RUN/engine.toml" >"$RUN/engine.log" 2>&1 &
    PID=$!
    undo stop_pid "$PID"
}

dpdk_port() { printf '[[port]]\nname = "%s"\nkind = "dpdk"\ndevice = "%s"\n' "$1" "$2"; }

# The engine's packets sent by both ports in a second, over the time given.
engine_rate() {
    local before after begin end
    sent() { "$BINARY" stats --path "$RUN/stats" | awk '$1 == "left" || $1 == "right" {sum += $6} END {printf "%d", sum}'; }
    wait_for 20 "the engine's first frames" engine_sends
    begin=$(date +%s%N); before=$(sent)
    sleep "$SECONDS_EACH"
    end=$(date +%s%N); after=$(sent)
    awk -v p=$((after - before)) -v ns=$((end - begin)) 'BEGIN {printf "%.3f", p * 1000 / ns}'
}
engine_sends() { "$BINARY" stats --path "$RUN/stats" 2>/dev/null | awk '$1 == "right" && $6 > 0 {found = 1} END {exit !found}'; }

# apply OPS: a transaction on the engine, in protobuf's text form, by an ordinary gRPC call.
apply() {
    local size
    protoc -I "$ROOT/proto/proto" --encode=vwire.dataplane.v1.ApplyRequest vwire/dataplane/v1/dataplane.proto <<<"$1" >"$RUN/request"
    # gRPC's five bytes before a message: not compressed, and its length.
    size=$(printf '%08x' "$(stat -c %s "$RUN/request")")
    { printf '\0'; printf "$(sed 's/../\\x&/g' <<<"$size")"; cat "$RUN/request"; } >"$RUN/call"
    curl -sS --http2-prior-knowledge --unix-socket "$RUN/api.sock" -H 'content-type: application/grpc' -H 'te: trailers' \
        --data-binary "@$RUN/call" -D "$RUN/answer" -o /dev/null http://engine/vwire.dataplane.v1.Dataplane/Apply
    grep -qi '^grpc-status: 0' "$RUN/answer" || { say "the engine refused:"; cat "$RUN/answer"; return 1; }
}

# pmd_rate LOG WAY: what a testpmd says of all its ports together, Rx-pps or Tx-pps, median of its reports from the third on.
pmd_rate() {
    local ports
    sleep "$((SECONDS_EACH + 3))"
    ports=$(grep -c 'NIC statistics for port 1' "$1" || true)
    awk -v way="$2-pps:" -v two="$ports" '
        {for (i = 1; i <= NF; i++) if ($i == way) {sum += $(i + 1); if (++seen % (two ? 2 : 1) == 0) {if (++report > 2) print sum / 1e6; sum = 0}}}' "$1" | three_places
}

three_places() { printf '%.3f' "$(median)"; }
of() { readings "$@" | three_places; }
note() { figure "$@"; say "   $1, $2: $3 Mpps"; }

null_null() {
    local row=$1 arguments=$2
    dpdk_engine "$(dpdk_port left "net_null0$arguments"; dpdk_port right "net_null1$arguments")"
    note "$row" vwire "$(engine_rate)"
    stop_pid "$PID"
    for burst in 32 64; do
        testpmd "$RUN/testpmd.log" "$FORWARD" --vdev "net_null0$arguments" --vdev "net_null1$arguments" -- \
            --forward-mode=io --burst="$burst" --no-lsc-interrupt
        note "$row" "testpmd $burst" "$(pmd_rate "$RUN/testpmd.log" Tx)"
        stop_pid "$PID"
    done
}

null_null_both() {
    local row="null - null, both" queues='queues = 2\nworkers = 2\n'
    WORKERS="0, $FORWARD"
    dpdk_engine "$(dpdk_port left net_null0; printf "$queues"; dpdk_port right net_null1; printf "$queues")"
    note "$row" vwire "$(engine_rate)"
    stop_pid "$PID"
    WORKERS=$FORWARD
    for burst in 32 64; do
        # A second forwarding thread on the first core, with testpmd's main thread, which only waits.
        testpmd "$RUN/testpmd.log" "0,2@$FORWARD" --vdev net_null0 --vdev net_null1 -- \
            --forward-mode=io --burst="$burst" --no-lsc-interrupt --nb-cores=2 --rxq=2 --txq=2
        note "$row" "testpmd $burst" "$(pmd_rate "$RUN/testpmd.log" Tx)"
        stop_pid "$PID"
    done
}

# A device's ring, which holds 1023 frames, is filled by a port that is then removed. With two queues it sends twice what a turn takes out.
ring_ring() {
    local row="ring - ring"
    dpdk_engine "$(dpdk_port seed net_null0; printf 'queues = 2\n'; dpdk_port left net_ring0; dpdk_port right net_ring1)" "$(xconnect seed left)"
    wait_for 20 "a full ring" ring_is_full
    apply 'ops { remove_xconnect { a: "seed" b: "left" } } ops { remove_port: "seed" } ops { add_xconnect { a: "left" b: "right" } }'
    note "$row" vwire "$(engine_rate)"
    stop_pid "$PID"
    for burst in 32 64; do
        # As many: half of them are sent to each device. testpmd then says that it has started already.
        echo "start tx_first $((512 / burst))" >"$RUN/testpmd.commands"
        testpmd "$RUN/testpmd.log" "$FORWARD" --vdev net_ring0 --vdev net_ring1 -- \
            --forward-mode=io --burst="$burst" --no-lsc-interrupt --cmdline-file="$RUN/testpmd.commands"
        note "$row" "testpmd $burst" "$(pmd_rate "$RUN/testpmd.log" Tx)"
        stop_pid "$PID"
    done
}
ring_is_full() {
    "$BINARY" stats --path "$RUN/stats" | awk '$1 != "dropped" {port = $1} port == "left" && $2 == "tx_full" {found = 1} END {exit !found}'
}

# taker SOCKET: connects to the memif, takes what comes and counts it.
taker() {
    wait_for 20 "the memif's socket" test -S "$1"
    testpmd "$RUN/taker.log" 0 --vdev "net_memif0,role=client,socket=$1,socket-abstract=no,rsize=11" -- \
        --forward-mode=rxonly --burst=64 --no-lsc-interrupt
}

null_memif() {
    local row="null - memif" socket=$RUN/m.sock forwarder
    rm -f "$socket"
    dpdk_engine "$(dpdk_port left net_null0; printf '[[port]]\nname = "right"\nkind = "memif"\nrole = "server"\nsocket = "%s"\n' "$socket")"
    forwarder=$PID
    taker "$socket"
    note "$row" vwire "$(pmd_rate "$RUN/taker.log" Rx)"
    stop_pid "$PID"; stop_pid "$forwarder"
    for burst in 32 64; do
        rm -f "$socket"
        testpmd "$RUN/testpmd.log" "$FORWARD" --vdev net_null0 --vdev "net_memif0,role=server,socket=$socket,socket-abstract=no,rsize=11" -- \
            --forward-mode=io --burst="$burst" --no-lsc-interrupt
        forwarder=$PID
        taker "$socket"
        note "$row" "testpmd $burst" "$(pmd_rate "$RUN/taker.log" Rx)"
        stop_pid "$PID"; stop_pid "$forwarder"
    done
}

# Two hosts, each behind a veth of the node's; nothing speaks there by itself.
hosts() {
    local end
    for end in node left right; do
        netns "$end"
        ip netns exec "$ID-$end" sysctl -qw net.ipv6.conf.default.disable_ipv6=1
    done
    for end in left right; do
        ip -n "$ID-$end" link add eth0 type veth peer name "$end" netns "$ID-node"
        ip -n "$ID-$end" link set dev eth0 up
        ip -n "$ID-node" link set dev "$end" up
    done
    ip -n "$ID-left" addr add 10.70.9.1/24 dev eth0
    ip -n "$ID-left" neigh add 10.70.9.2 lladdr 02:00:00:00:00:02 dev eth0
    ip netns exec "$ID-left" ethtool -K eth0 tx off tx-udp-segmentation off >"$LOGS/ethtool.log"
}

# The left host sends without end, 64 frames in a call, which the kernel cuts: a sender by a packet socket is no faster than what takes
# its frames. Leaves its process id in SENDER.
sender() {
    nice -n -20 ip netns exec "$ID-left" taskset -c 0 python3 -c '
import socket
UDP_SEGMENT, PAYLOAD = 103, 22
to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
to.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, PAYLOAD)
to.connect(("10.70.9.2", 9))
frames = bytes(64 * PAYLOAD)
while True:
    try:
        to.send(frames)
    except OSError:
        pass
' &
    SENDER=$!
    undo stop_pid "$SENDER"
}

# eth0 HOST COUNTER
eth0() { ip netns exec "$ID-$1" cat "/sys/class/net/eth0/statistics/$2"; }
arrive() { [ "$(eth0 right rx_packets)" -gt $(($1 + 1000)) ]; }

# arrivals WHOSE: what is sent and what arrives in a second, while the forwarder runs.
arrivals() {
    local row="af_packet" sent_before sent before after begin end
    wait_for 20 "frames to arrive" arrive "$(eth0 right rx_packets)"
    begin=$(date +%s%N); sent_before=$(eth0 left tx_packets); before=$(eth0 right rx_packets)
    sleep "$SECONDS_EACH"
    end=$(date +%s%N); sent=$(eth0 left tx_packets); after=$(eth0 right rx_packets)
    mpps() { awk -v p="$1" -v ns=$((end - begin)) 'BEGIN {printf "%.3f", p * 1000 / ns}'; }
    note "$row" "$1" "$(mpps $((after - before)))"
    note "$row" "sent to $1" "$(mpps $((sent - sent_before)))"
}

af_packet() {
    INSIDE=(ip netns exec "$ID-node")
    sender
    dpdk_engine "$(dpdk_port left net_af_packet0,iface=left; dpdk_port right net_af_packet1,iface=right)"
    arrivals vwire
    stop_pid "$PID"
    for burst in 32 64; do
        testpmd "$RUN/testpmd.log" "$FORWARD" --vdev net_af_packet0,iface=left --vdev net_af_packet1,iface=right -- \
            --forward-mode=io --burst="$burst" --no-lsc-interrupt
        arrivals "testpmd $burst"
        stop_pid "$PID"
    done
    stop_pid "$SENDER"
    INSIDE=()
}

hosts
for round in $(seq "$ROUNDS"); do
    say "-- round $round of $ROUNDS"
    null_null "null - null" ""
    null_null_both
    null_null "null - null, copy" ",size=1514,copy=1"
    ring_ring
    null_memif
    af_packet
done
say "" "DPDK ports, Mpps forwarded by one core, median of $ROUNDS rounds of $SECONDS_EACH s" \
    "$(printf '%-20s %10s %12s %12s %8s' '' vwire 'testpmd 32' 'testpmd 64' ratio)"
for row in "null - null" "null - null, both" "null - null, copy" "ring - ring" "null - memif" "af_packet"; do
    ours=$(of "$row" vwire) small=$(of "$row" "testpmd 32") large=$(of "$row" "testpmd 64")
    best=$(printf '%s\n%s\n' "$small" "$large" | sort -g | tail -n 1)
    printf '%-20s %10s %12s %12s %8s\n' "$row" "$ours" "$small" "$large" \
        "$(awk -v a="$ours" -v b="$best" 'BEGIN {printf "%.2f", (b > 0 ? a / b : 0)}')"
done
say "The ratio is vwire over the better of testpmd's two burst sizes." \
    "To af_packet's forwarders were sent: $(of af_packet "sent to vwire"), $(of af_packet "sent to testpmd 32") and $(of af_packet "sent to testpmd 64") Mpps; where no more was sent than came out, the sender was the limit."
