#!/usr/bin/env bash
# Ports on DPDK's drivers, measured beside testpmd on the same virtual devices, in the same run and in turn; one core forwards:
#   null - null         net_null gives empty frames without end and takes all: what forwarding itself costs. testpmd: --forward-mode=io
#   null - null, copy   the same with devices that copy each frame once in and once out, as a NIC's DMA touches memory
#   null - memif        into a memif of our own (one copy) beside testpmd's net_memif; a second testpmd takes the frames and counts
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
need_packages dpdk libdpdk-dev
need_hugepages 200
"$BINARY" --help 2>/dev/null | grep -q '^Kinds of ports.*dpdk' || {
    say "no engine with DPDK ports at $BINARY; build it with: cargo build --release -p vwire-dataplane --features dpdk"
    exit 1
}

bench_files
# The forwarder has the last core, what takes its frames the first.
FORWARD=$(($(nproc) - 1))
PID=

# testpmd LOG CORE ARGUMENTS...: its main thread only waits, so that it may share the core. Leaves its process id in PID.
testpmd() {
    local log=$1 core=$2
    shift 2
    dpdk-testpmd --lcores "0@0,1@$core" --in-memory --no-telemetry --no-pci -m 128 "$@" \
        --total-num-mbufs=16384 --stats-period 1 >"$log" 2>&1 </dev/null &
    PID=$!
    undo stop_pid "$PID"
}

# dpdk_engine PORTS: two ports, left and right.
dpdk_engine() {
    printf '[workers]\ncores = [%s]\nmode = "poll"\n[stats]\npath = "%s"\n[api]\nsocket = "%s"\n[dpdk]\nmemory = 128\n%s\n%s\n' \
        "$FORWARD" "$RUN/stats" "$RUN/api.sock" "$1" "$(xconnect left right)" >"$RUN/engine.toml"
    "$BINARY" --config "$RUN/engine.toml" >"$RUN/engine.log" 2>&1 &
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

for round in $(seq "$ROUNDS"); do
    say "-- round $round of $ROUNDS"
    null_null "null - null" ""
    null_null "null - null, copy" ",size=1514,copy=1"
    null_memif
done
say "" "DPDK ports, Mpps forwarded by one core, median of $ROUNDS rounds of $SECONDS_EACH s" \
    "$(printf '%-20s %10s %12s %12s %8s' '' vwire 'testpmd 32' 'testpmd 64' ratio)"
for row in "null - null" "null - null, copy" "null - memif"; do
    ours=$(of "$row" vwire) small=$(of "$row" "testpmd 32") large=$(of "$row" "testpmd 64")
    best=$(printf '%s\n%s\n' "$small" "$large" | sort -g | tail -n 1)
    printf '%-20s %10s %12s %12s %8s\n' "$row" "$ours" "$small" "$large" \
        "$(awk -v a="$ours" -v b="$best" 'BEGIN {printf "%.2f", (b > 0 ? a / b : 0)}')"
done
say "The ratio is vwire over the better of testpmd's two burst sizes."
