#!/usr/bin/env bash
# The main job, on a bare Debian 12 (root; rustup's stable toolchain is the only prerequisite): two nodes on one machine.
#
#   pod 1: nsm-1 ─┐                                                  ┌─ nsm-1 :pod 2
#                 ├─ engine of node 1 ── VXLAN over veth ── engine of node 2 ─┤
#   memif client ─┘  (vwire-demo-1)                        (vwire-demo-2)     └─ memif responder
#
# Pings through memif → VXLAN → memif and tap → VXLAN → tap, per-port counters, then throughput. Leaves nothing behind.
. "$(dirname "$0")/lib.sh"

RUN=/run/vwire/demo
BIN=$ROOT/target/release

need_root
need_rust
need_packages build-essential iproute2 iputils-ping curl
modprobe tun 2>/dev/null || true
need_hugepages 64

build() {
    cargo build --release --locked -p vwire-dataplane -p vwire-benches
    cargo build --release --locked -p memif --examples
}

make_nodes() {
    mkdir -p "$RUN"
    undo rm -rf "$RUN"
    local n
    for n in vwire-demo-1 vwire-demo-2 vwire-demo-pod1 vwire-demo-pod2; do
        ip netns add "$n"
        undo ip netns del "$n"
        ip -n "$n" link set lo up
    done
    ip link add vwire-u1 netns vwire-demo-1 type veth peer name vwire-u2 netns vwire-demo-2
    ip -n vwire-demo-1 addr add 10.9.0.1/24 dev vwire-u1
    ip -n vwire-demo-2 addr add 10.9.0.2/24 dev vwire-u2
    ip -n vwire-demo-1 link set vwire-u1 up
    ip -n vwire-demo-2 link set vwire-u2 up
}

# in_background LOG COMMAND...: starts COMMAND and stops it when the script ends.
in_background() {
    local log=$LOGS/$1.log
    shift
    "$@" >"$log" 2>&1 &
    LAST_PID=$!
    undo stop_pid "$LAST_PID"
}

start_engines() {
    local n
    for n in 1 2; do
        in_background "engine-node$n" nice -n -20 ip netns exec "vwire-demo-$n" "$BIN/vwire-dataplane" --config "$ROOT/config/demo/node$n.toml"
    done
    for n in 1 2; do
        wait_for 10 "engine of node $n to be ready (log: $LOGS/engine-node$n.log)" \
            ip netns exec "vwire-demo-$n" curl -sf "http://127.0.0.1:910$n/ready"
    done
}

start_responder() {
    in_background responder "$BIN/examples/icmp_responder" --role client --socket "$RUN/node2.memif.sock" --address 10.60.1.2/30
}

memif_ping() {
    "$BIN/examples/ping" --role client --socket "$RUN/node1.memif.sock" --address 10.60.1.1/30 --count 10 --interval 0.1 10.60.1.2
}

kernel_ping() {
    ip netns exec vwire-demo-pod1 ping -c 10 -i 0.1 -W 2 10.60.2.2
    say "one packet of the full MTU:"
    ip netns exec vwire-demo-pod1 ping -c 1 -W 2 -M do -s 1418 10.60.2.2
}

counters() {
    local n
    for n in 1 2; do
        say "node $n"
        "$BIN/vwire-dataplane" stats --path "$RUN/node$n.stats"
    done
}

throughput_memif() {
    "$BIN/traffic" --from "$RUN/load-in.sock" --to "$RUN/load-out.sock" --size 64,512,1500 --seconds 2 --core 1
}

throughput_vxlan() {
    say "sent on node 1, counted behind the tunnel on node 2; 200,000 frames a second:"
    "$BIN/traffic" --from "$RUN/load-far.sock" --to "$RUN/load-sink.sock" --size 64,1400 --seconds 2 --rate 200000
    say "as many as node 1 takes (two engines and the traffic share $(nproc) cores, so what is lost is counted below):"
    "$BIN/traffic" --from "$RUN/load-far.sock" --to "$RUN/load-sink.sock" --size 64,1400 --seconds 2
}

step "build (release)" build
step "two nodes and two pods as network namespaces" make_nodes
step "an engine on each node" start_engines
step "memif responder on node 2" start_responder
loud_step "ping: memif → VXLAN → memif" memif_ping
loud_step "ping: tap → VXLAN → tap" kernel_ping
loud_step "throughput: memif → memif" throughput_memif
loud_step "throughput: memif → VXLAN → memif" throughput_vxlan
loud_step "per-port counters" counters
say "done; everything is taken down again"
