#!/usr/bin/env bash
# Measures the engine beside its peers on this machine and prints a table with ratios: every row is taken next to its peer, in
# turn, and the median of the rounds is shown. Two cores at least: one for the worker, one for the traffic.
#   scripts/bench.sh [--rounds 3] [--seconds 2] [GROUP...]
# groups: memif vxlan relay kernel latency idle ports (all unless named)
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/lib_bench.sh"

ROUNDS=3
SECONDS_EACH=2
bench_options "$@"
GROUPS_WANTED=("${REST[@]}")

BIN=$ROOT/target/release
BINARY=$BIN/vwire-dataplane
bench_files

need_root
need_rust
need_packages build-essential iproute2 iperf3 ethtool curl dpdk-dev
need_hugepages 512
modprobe tun 2>/dev/null || true

wanted() { [ ${#GROUPS_WANTED[@]} -eq 0 ] || printf '%s\n' "${GROUPS_WANTED[@]}" | grep -qx "$1"; }

# A row without a reading has no number.
of() { readings "$@" | median -; }

build() {
    cargo build --release --locked -p vwire-dataplane -p vwire-benches
    cargo build --release --locked -p vwire-benches --examples
}

# --- memif to memif, beside DPDK's testpmd and beside a loop without checks -------------------------------------------------

testpmd() {
    nice -n -20 dpdk-testpmd --main-lcore=0 -l 0,1 --no-pci --in-memory --single-file-segments -m 256 \
        --vdev="net_memif0,role=server,id=0,socket=$RUN/dpdk-a.sock,socket-abstract=no,rsize=10,bsize=2048" \
        --vdev="net_memif1,role=server,id=0,socket=$RUN/dpdk-b.sock,socket-abstract=no,rsize=10,bsize=2048" \
        -- --forward-mode=io --auto-start --nb-cores=1 --no-lsc-interrupt --burst=64 --stats-period=60 >"$LOGS/testpmd.log" 2>&1 &
    TESTPMD=$!
    undo stop_pid "$TESTPMD"
    wait_for 15 "testpmd's sockets (log: $LOGS/testpmd.log)" test -S "$RUN/dpdk-b.sock"
}

memif_round() {
    local size
    testpmd
    for size in 64 512 1500; do
        figure "memif $size B" peer "$(traffic --from "$RUN/dpdk-a.sock" --to "$RUN/dpdk-b.sock" --size $size | field mpps)"
    done
    stop_pid "$TESTPMD"
    rm -f "$RUN"/dpdk-?.sock
    engine memif
    for size in 64 512 1500; do
        figure "memif $size B" vwire "$(traffic --from "$RUN/a.sock" --to "$RUN/b.sock" --size $size | field mpps)"
    done
    stop_pid "$ENGINE"
    # Its lines: layout, bytes, bare, …; OddLines is how our clients, and so the traffic, lay out their buffers.
    nice -n -20 "$BIN/examples/pair_bench" 64 512 1500 | awk '/OddLines/ {print $2, $3}' | while read -r size bare; do
        figure "memif $size B" bare "$bare"
    done
}

memif() {
    { workers memif 1 poll; memif_port a a.sock; memif_port b b.sock; xconnect a b; } >"$RUN/memif.toml"
    local round
    for ((round = 0; round < ROUNDS; round++)); do memif_round; done
}

memif_table() {
    say "memif → memif, one worker core (Mpps)" "$(printf '%8s %10s %10s %10s %12s %12s' bytes testpmd vwire 'bare loop' vwire/testpmd vwire/bare)"
    local size
    for size in 64 512 1500; do
        awk -v s="$size" -v p="$(of "memif $size B" peer)" -v v="$(of "memif $size B" vwire)" -v b="$(of "memif $size B" bare)" \
            'BEGIN {printf "%8d %10.2f %10.2f %10.2f %11.2fx %11.2fx\n", s, p, v, b, v/p, v/b}'
    done
}

# --- memif to VXLAN over veth, and back, beside a bare loop that fills one buffer for UDP_SEGMENT -------------------------------

FAR=vwire-bench-far
NEAR=vwire-bench-near

two_nodes() {
    local n
    for n in $NEAR $FAR; do
        ip netns add $n
        undo ip netns del $n
        ip -n $n link set lo up
    done
    ip link add vwb-near netns $NEAR type veth peer name vwb-far netns $FAR
    ip -n $NEAR addr add 10.9.0.1/24 dev vwb-near
    ip -n $FAR addr add 10.9.0.2/24 dev vwb-far
    ip -n $NEAR link set vwb-near up
    ip -n $FAR link set vwb-far up
}

need_nodes() { ip netns exec $NEAR true 2>/dev/null || two_nodes; }

# tunnels NAME CORE MODE LOCAL REMOTE COUNT: COUNT memif ports on one socket, each connected to a tunnel of its own.
tunnels() {
    local i
    workers "$1" "$2" "$3"
    for ((i = 0; i < $6; i++)); do
        memif_port "m$i" "$1.sock" $i
        vxlan_port "t$i" $((100 + i)) "$4" "$5"
        xconnect "m$i" "t$i"
    done
}

# af_xdp_tunnel NAME CORE MODE: a memif port connected to a tunnel whose underlay is the near interface itself, by AF_XDP.
af_xdp_tunnel() {
    workers "$1" "$2" "$3"
    printf '[[port]]\nname = "nic"\nkind = "af_xdp"\nifname = "vwb-near"\n[[underlay]]\nport = "nic"\naddresses = ["10.9.0.1/24"]\n'
    memif_port m0 "$1.sock"
    vxlan_port t0 100 10.9.0.1 10.9.0.2
    printf 'underlay = "nic"\n'
    xconnect m0 t0
}

far_traffic() { nice -n -20 ip netns exec $FAR "$BIN/traffic" --core 0 --seconds "$SECONDS_EACH" "$@"; }

vxlan_round() {
    local size
    # Its lines: "64 B   ours X Mpps …   arrived Y %   bare Z Mpps …".
    nice -n -20 "$BIN/udp_bare" --rounds 1 --seconds 1 --size 64 --size 1450 |
        sed -n 's/^\([0-9]*\) B .*bare \([0-9.]*\) Mpps.*/\1 \2/p' |
        while read -r size mpps; do figure "vxlan $size" bare "$mpps"; done
    engine vxlan1 $NEAR
    for size in 64 1450; do
        figure "vxlan $size" out "$(far_traffic --from "$RUN/vxlan1.sock" --to vxlan/10.9.0.2/10.9.0.1/100 --size $size | field mpps)"
        figure "vxlan $size" in "$(far_traffic --from vxlan/10.9.0.2/10.9.0.1/100 --to "$RUN/vxlan1.sock" --size $size | field mpps)"
    done
    stop_pid "$ENGINE"
    engine vxlanx $NEAR
    # The kernel has to find out who the far node is before frames leave.
    ip netns exec $NEAR ping -q -c 1 -W 5 10.9.0.2 >/dev/null
    for size in 64 1450; do
        figure "vxlan $size" xout "$(far_traffic --from "$RUN/vxlanx.sock" --to vxlan/10.9.0.2/10.9.0.1/100 --size $size | field mpps)"
        figure "vxlan $size" xin "$(far_traffic --from vxlan/10.9.0.2/10.9.0.1/100 --to "$RUN/vxlanx.sock" --size $size | field mpps)"
    done
    stop_pid "$ENGINE"
    engine vxlan64 $NEAR
    figure "vxlan imix" out "$(far_traffic --from "$RUN/vxlan64.sock:0-63" --to vxlan/10.9.0.2/10.9.0.1/100-163 --size imix | field mpps)"
    figure "vxlan imix" in "$(far_traffic --from vxlan/10.9.0.2/10.9.0.1/100-163 --to "$RUN/vxlan64.sock:0-63" --size imix | field mpps)"
    stop_pid "$ENGINE"
}

vxlan() {
    need_nodes
    tunnels vxlan1 1 poll 10.9.0.1 10.9.0.2 1 >"$RUN/vxlan1.toml"
    tunnels vxlan64 1 poll 10.9.0.1 10.9.0.2 64 >"$RUN/vxlan64.toml"
    af_xdp_tunnel vxlanx 1 poll >"$RUN/vxlanx.toml"
    local round
    for ((round = 0; round < ROUNDS; round++)); do vxlan_round; done
}

# What a VPP on AF_PACKET does here: it is not in Debian, so it can't be run beside.
vpp() { case $1 in 64 | imix) echo 0.46 ;; *) echo 0.21 ;; esac; }

vxlan_table() {
    say "memif → VXLAN → veth, and veth → VXLAN → memif, one worker core (Mpps)" \
        "$(printf '%8s %10s %10s %10s %10s %10s' bytes 'bare loop' out in out/bare out/VPP)"
    local size
    for size in 64 1450 imix; do
        awk -v s=$size -v b="$(of "vxlan $size" bare)" -v o="$(of "vxlan $size" out)" -v i="$(of "vxlan $size" in)" -v v="$(vpp $size)" \
            'BEGIN {printf "%8s %10s %10.2f %10.2f %10s %9.1fx\n", s, b, o, i, (b > 0 ? sprintf("%.2fx", o/b) : "-"), o/v}'
    done
    say "the same with the veth interface itself as the underlay, by AF_XDP in copy mode, beside the kernel-UDP underlay (Mpps)" \
        "$(printf '%8s %10s %10s %10s %10s %10s %10s' bytes 'UDP out' 'XDP out' out/VPP 'UDP in' 'XDP in' in/VPP)"
    for size in 64 1450; do
        awk -v s=$size -v o="$(of "vxlan $size" out)" -v i="$(of "vxlan $size" in)" -v x="$(of "vxlan $size" xout)" -v y="$(of "vxlan $size" xin)" \
            -v v="$(vpp $size)" 'BEGIN {printf "%8s %10.2f %10.2f %9.1fx %10.2f %10.2f %9.1fx\n", s, o, x, x/v, i, y, y/v}'
    done
    say "(imix: 64, 594 and 1464 bytes 7:4:1, each size a flow of its own, 64 tunnels in turn. VPP on AF_PACKET: 0.46 at 64 B, 0.21 at 1450 B, not run here.)"
}

# --- from engine to engine: the highest rate without loss -------------------------------------------------------------------------

relay() {
    need_nodes
    # The far engine has a core; the near one shares the other with the traffic, and both let each other have it.
    tunnels relay-near 1 adaptive 10.9.0.1 10.9.0.2 1 >"$RUN/relay-near.toml"
    tunnels relay-far 0 adaptive 10.9.0.2 10.9.0.1 1 >"$RUN/relay-far.toml"
    engine relay-near $NEAR
    local near=$ENGINE size rate line
    engine relay-far $FAR
    for size in 64 1450; do
        for rate in 8000000 6000000 5000000 4000000 3000000 2500000 2000000 1500000 1000000 700000 500000 300000 200000 100000; do
            # Long rings: a turn of the scheduler is some milliseconds.
            line=$(nice -n -20 "$BIN/traffic" --core 1 --seconds "$SECONDS_EACH" --ring 14 --from "$RUN/relay-near.sock" --to "$RUN/relay-far.sock" --size $size --rate $rate)
            if [ "$(field lost <<<"$line")" = 0 ]; then
                figure "relay $size" rate "$(field mpps <<<"$line")"
                break
            fi
        done
    done
    stop_pid "$ENGINE"
    stop_pid "$near"
}

relay_table() {
    say "memif → VXLAN → veth → VXLAN → memif, two engines and the traffic on 2 cores: highest rate tried without a frame lost" \
        "  64 B: $(of 'relay 64' rate) Mpps   1450 B: $(of 'relay 1450' rate) Mpps"
}

# --- round trips at a tenth of the load ---------------------------------------------------------------------------------------

latency() {
    local mode round line
    for mode in poll adaptive; do
        { workers "latency-$mode" 1 $mode; memif_port a a.sock; memif_port b b.sock; xconnect a b; } >"$RUN/latency-$mode.toml"
        engine "latency-$mode"
        local full
        full=$(traffic --from "$RUN/a.sock" --to "$RUN/b.sock" --size 64 | field mpps)
        for ((round = 0; round < ROUNDS; round++)); do
            line=$(traffic --latency --rate "$(awk -v f="$full" 'BEGIN {printf "%d", f * 1e5}')" \
                --from "$RUN/a.sock" --to "$RUN/b.sock" --size 64)
            for q in p50 p99 p999; do figure "latency $mode" $q "$(field ${q}_us <<<"$line")"; done
            # What was really sent a second, and what of it did not come back: without them the times mean nothing.
            figure "latency $mode" rate "$(awk -v n="$(field sent <<<"$line")" -v s="$SECONDS_EACH" 'BEGIN {print n / s / 1e6}')"
            figure "latency $mode" lost "$(($(field sent <<<"$line") - $(field received <<<"$line")))"
        done
        stop_pid "$ENGINE"
    done
}

latency_table() {
    say "memif → memif, 64 B at a tenth of the full rate, or what one core can stamp: departure to arrival (µs)" "$(printf '%10s %10s %10s %10s %10s %10s' mode Mpps lost p50 p99 p99.9)"
    local mode
    for mode in poll adaptive; do
        printf '%10s %10s %10s %10s %10s %10s\n' $mode "$(of "latency $mode" rate)" "$(of "latency $mode" lost)" "$(of "latency $mode" p50)" "$(of "latency $mode" p99)" "$(of "latency $mode" p999)"
    done
}

# --- an idle engine ------------------------------------------------------------------------------------------------------------

idle() {
    { workers idle 1 adaptive; memif_port a a.sock; memif_port b b.sock; xconnect a b; } >"$RUN/idle.toml"
    engine idle
    traffic --from "$RUN/a.sock" --to "$RUN/b.sock" --size 64 >/dev/null
    nice -n -20 "$BIN/traffic" --from "$RUN/a.sock" --to "$RUN/b.sock" --size 64 --rate 0 --seconds 8 >/dev/null &
    local holder=$!
    sleep 2
    local before after
    before=$(awk '{print $14 + $15}' "/proc/$ENGINE/stat")
    sleep 5
    after=$(awk '{print $14 + $15}' "/proc/$ENGINE/stat")
    figure idle cpu "$(awk -v d=$((after - before)) -v hz="$(getconf CLK_TCK)" 'BEGIN {print d / hz / 5 * 100}')"
    figure idle rss "$(awk '/^VmRSS/ {print $2 / 1024}' "/proc/$ENGINE/status")"
    wait "$holder"
    stop_pid "$ENGINE"
}

idle_table() {
    say "idle, adaptive, two connected memif ports: $(of idle cpu) % of a core, $(of idle rss) MiB resident"
}

# --- a thousand ports, two of them busy -------------------------------------------------------------------------------------------

# idle_ends COUNT: the ports beyond the two busy ones, if there are any.
idle_ends() { if [ "$1" -gt 2 ]; then printf -- '--idle %s:2-%d' "$RUN/ports.sock" $(($1 - 1)); fi; }

ports() {
    local count i round
    for count in 2 1000; do
        {
            workers "ports-$count" 1 poll
            for ((i = 0; i < count; i++)); do memif_port "p$i" ports.sock $i; done
            for ((i = 0; i < count; i += 2)); do xconnect "p$i" "p$((i + 1))"; done
        } >"$RUN/ports-$count.toml"
    done
    for ((round = 0; round < ROUNDS; round++)); do
        for count in 2 1000; do
            engine "ports-$count"
            figure ports $count "$(traffic --from "$RUN/ports.sock:0" --to "$RUN/ports.sock:1" --size 64 \
                $(idle_ends $count) | field mpps)"
            stop_pid "$ENGINE"
        done
    done
}

ports_table() {
    say "64 B through two busy memif ports of one worker: $(of ports 2) Mpps alone, $(of ports 1000) Mpps among 1,000 connected ports" \
        "ratio $(awk -v a="$(of ports 1000)" -v b="$(of ports 2)" 'BEGIN {printf "%.2f", (b > 0 ? a / b : 0)}')"
}

# --- kernel interfaces, with iperf3 --------------------------------------------------------------------------------------------

kernel() { "$ROOT/scripts/bench_kernel.sh" --rounds "$ROUNDS" --seconds "$SECONDS_EACH" "$BIN/vwire-dataplane"; }

kernel_table() { sed -n '/^kernel interfaces/,$p' "$LOGS/measure--kernel.log" | grep -v '^logs:'; }

step "build (release)" build
for group in memif vxlan relay kernel latency idle ports; do
    if wanted $group; then step "measure: $group" $group; fi
done
for group in memif vxlan relay kernel latency idle ports; do
    if wanted $group; then
        say ""
        ${group}_table
    fi
done
