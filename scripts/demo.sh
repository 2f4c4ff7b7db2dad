#!/usr/bin/env bash
# The main job, on a bare Debian 12 (root; rustup's stable toolchain is the only prerequisite): a mesh of two nodes on one machine.
#
#   client with nsm-1 … nsm-4 ─┐                                                  ┌─ endpoint with a kernel interface
#                              ├─ engine of node 1 ── VXLAN over veth ── engine of node 2 ─┤
#         client with memifs ──┘   and two endpoints beside it                     └─ endpoint with memif
#
# First the mesh (config/lab/two-nodes.yaml): connections, pings, what an operator sees, and the death of every control process
# under a running ping. Then how much the engine alone carries, and at last the first NSM's own walk: two domains with a name server and a
# filter between them (config/lab/two-domains.yaml), a client of one asks for icmp-responder of the other. Leaves nothing behind.
# VWIRE_BIN=DIR takes the programs that are there, and builds none.
. "$(dirname "$0")/lib.sh"

RUN=/run/vwire/demo
BIN=${VWIRE_BIN:-$ROOT/target/release}
LAB=two-nodes
ENGINES=()
FILE=$ROOT/config/lab/$LAB.yaml
FILES=/run/vwire/lab/$LAB

need_root
need_rust
need_packages build-essential iproute2 iputils-ping iperf3 jq curl nsd nftables
modprobe tun 2>/dev/null || true
need_hugepages 64

build() {
    [ -z "${VWIRE_BIN:-}" ] || return 0
    cargo build --release --locked -p vwire-control -p vwire-dataplane -p vwire-benches
}

lab_up() {
    "$BIN/vwire" lab down "$LAB"
    "$BIN/vwire" lab up "$FILE"
}

# address_of SERVICE: the endpoint's address on the kernel client's vWire to SERVICE.
address_of() {
    "$BIN/vwire" path -o json --admin "unix://$FILES/admin/nsc-nsc-kernel.sock" |
        jq -r --arg service "$1" '.[] | select(.service == $service) | .endpoint_addresses[0] | split("/")[0]'
}

explain() {
    SPIFFE_ENDPOINT_SOCKET="unix://$FILES/spiffe/nsc-nsc-kernel.sock" \
        "$BIN/vwire" explain far-kernel --labels app=demo --connect-to "unix://$FILES/node-1.nsm.sock"
}

# pings NAMESPACE ADDRESS COUNT LOG: pings until so many answers are there. A busy machine's late answers are no lost ones, so a few
# more may be sent than are asked for.
pings() {
    ip netns exec "$1" ping -n -i 0.02 -c "$3" -w 60 "$2" >"$4" 2>&1
}

# none_lost COUNT LOG: says so, and fails if it isn't so.
none_lost() {
    local answered
    answered=$(grep 'time=' "$2" | grep -o 'icmp_seq=[0-9]*' | cut -d= -f2 | sort -nu | awk -v most="$1" '$1 <= most' | wc -l)
    say "$1 pings: $answered answered, $((100 - 100 * answered / $1)) % lost; $(tail -n 1 "$2")"
    [ "$answered" -eq "$1" ]
}

# The control plane is killed, all of it at once and on both nodes, and an endpoint with it; the engines are not.
survive() {
    local address control=(node-node-1 nsmgr-node-2 forwarder-node-2 registry-cluster nse-far-kernel)
    address=$(address_of far-kernel)
    pings "vw-$LAB-nsc-kernel" "$address" 250 "$LOGS/survive.log" &
    local ping=$!
    wait_for 20 "the first answers" grep -q "icmp_seq=20 " "$LOGS/survive.log"
    "$BIN/vwire" lab kill "$LAB" "${control[@]}"
    say "killed while the ping runs: ${control[*]}"
    wait "$ping" || true
    none_lost 250 "$LOGS/survive.log"
    "$BIN/vwire" lab restart "$LAB" "${control[@]}"
    say "started again; the same checks, on the same vWires:"
    "$BIN/vwire" lab check "$LAB"
}

lab_down() {
    "$BIN/vwire" lab down "$LAB"
    ! ip netns list | grep "vw-$LAB-"
}

start_engines() {
    local n
    mkdir -p "$RUN"
    undo rm -rf "$RUN"
    for n in 1 2; do
        ip netns add "vwire-demo-$n"
        undo ip netns del "vwire-demo-$n"
        ip -n "vwire-demo-$n" link set lo up
    done
    ip link add vwire-u1 netns vwire-demo-1 type veth peer name vwire-u2 netns vwire-demo-2
    for n in 1 2; do
        ip -n "vwire-demo-$n" addr add "10.9.0.$n/24" dev "vwire-u$n"
        ip -n "vwire-demo-$n" link set "vwire-u$n" up
    done
    undo stop_engines
    for n in 1 2; do
        nice -n -20 ip netns exec "vwire-demo-$n" "$BIN/vwire-dataplane" --config "$ROOT/config/demo/node$n.toml" \
            >"$LOGS/engine-node$n.log" 2>&1 &
        ENGINES+=("$!")
    done
    for n in 1 2; do
        wait_for 10 "engine of node $n to be ready (log: $LOGS/engine-node$n.log)" \
            ip netns exec "vwire-demo-$n" curl -sf "http://127.0.0.1:910$n/ready"
    done
}

# They never sleep: nothing else shall run beside them.
stop_engines() {
    local pid
    for pid in "${ENGINES[@]}"; do stop_pid "$pid"; done
    ENGINES=()
}

throughput() {
    say "memif → memif:"
    "$BIN/traffic" --from "$RUN/load-in.sock" --to "$RUN/load-out.sock" --size 64,512,1500 --seconds 2 --core 1
    say "memif → VXLAN → memif, 200,000 frames a second:"
    "$BIN/traffic" --from "$RUN/load-far.sock" --to "$RUN/load-sink.sock" --size 64,1400 --seconds 2 --rate 200000
}

# The first NSM's own walk: a client in one domain asks for icmp-responder of another, by name and by address, and pings it through
# kernel, VXLAN and memif.
walk() {
    local client address
    "$BIN/vwire" lab down two-domains
    "$BIN/vwire" lab up "$ROOT/config/lab/two-domains.yaml"
    "$BIN/vwire" lab check two-domains
    for client in by-name by-address; do
        say "" "$client, hop by hop:"
        "$BIN/vwire" path "$client-0"
        address=$("$BIN/vwire" path -o json --admin "unix:///run/vwire/lab/two-domains/admin/nsc-$client.sock" |
            jq -r 'first(.[] | select(.service | startswith("icmp-responder@"))) | .endpoint_addresses[0] | split("/")[0]')
        ip -n "vw-two-domains-$client" -brief address show dev nsm-1
        pings "vw-two-domains-$client" "$address" 20 "$LOGS/walk-$client.log" || true
        head -n 4 "$LOGS/walk-$client.log"
        none_lost 20 "$LOGS/walk-$client.log"
    done
    "$BIN/vwire" lab down two-domains
    ! ip netns list | grep "vw-two-domains-"
}

step "build (release)" build
# Not in a step: a loud one runs in a shell of its own.
undo "$BIN/vwire" lab down "$LAB"
loud_step "two nodes, six workloads: vwire lab up" lab_up
loud_step "pings, a TCP transfer, paths: vwire lab check" "$BIN/vwire" lab check "$LAB"
loud_step "every role: vwire status" "$BIN/vwire" status
loud_step "a kernel client's vWire, hop by hop: vwire path" "$BIN/vwire" path nsc-kernel-0
loud_step "a memif client's vWire, hop by hop: vwire path" "$BIN/vwire" path nsc-memif-0
loud_step "who would serve a client, and why: vwire explain" explain
loud_step "the control plane dies and no packet is lost" survive
loud_step "nothing is left: vwire lab down" lab_down
step "the engine alone: two nodes joined by VXLAN" start_engines
loud_step "throughput" throughput
stop_engines
undo "$BIN/vwire" lab down two-domains
loud_step "the walk: a client of one domain asks for icmp-responder of another" walk
say "done; everything is taken down again"
