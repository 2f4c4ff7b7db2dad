#!/usr/bin/env bash
# Measures the mesh beside the Go implementation on this machine, in one run, and prints a table with ratios: Requests, refreshes and
# Closes per second with their quantiles, each role's resident memory, and the registry. All with mutual TLS, tokens and the default
# policies. Both are driven by the same programs (control/tests/go: load, regload).
#   scripts/bench_mesh.sh [--side go|vwire] [--count 400] [GROUP...]
# groups: setup memory registry (all unless named)
. "$(dirname "$0")/lib.sh"

SIDES=(go vwire)
COUNT=400
WANTED=()
while [ $# -gt 0 ]; do
    case $1 in
        --side) SIDES=("$2"); shift 2 ;;
        --count) COUNT=$2; shift 2 ;;
        *) WANTED+=("$1"); shift ;;
    esac
done
[ ${#WANTED[@]} -gt 0 ] || WANTED=(setup memory registry)

need_root
need_rust
need_go
need_packages iproute2 jq

PEERS=$ROOT/target/go-peers/gopeers
BIN=$ROOT/target/release
FIGURES=$LOGS/figures
RUN=$(mktemp -d /tmp/vwb.XXXX)
undo rm -rf "$RUN"
: >"$FIGURES"
ROLES=(registry nsmgr forwarder nse)
declare -A PIDS=()

build_peers() (cd control/tests/go && go build -buildvcs=false -o "$PEERS" .)

# start NAME NETNS PROGRAM [VARIABLE=VALUE...] -- ARGUMENT...: a process of the mesh; PIDS[NAME] is its id.
start() {
    local name=$1 space=$2 program=$3 settings=()
    shift 3
    while [ "$1" != -- ]; do settings+=("$1"); shift; done
    shift
    ip netns exec "$space" env SPIFFE_ENDPOINT_SOCKET="unix://$RUN/$name.sock" NSM_QUIET=true NSM_NAME="$name" \
        VWIRE_ADMIN="unix://$RUN/$name.admin" VWIRE_RUN="$RUN/$name.run" NSM_MAX_TOKEN_LIFETIME=10m \
        "${settings[@]}" "$program" "$@" </dev/null >"$LOGS/$name.out" 2>"$LOGS/$name.log" &
    PIDS[$name]=$!
}

# healthy URL NETNS: one health check over mutual TLS.
healthy() {
    ip netns exec "$2" env SPIFFE_ENDPOINT_SOCKET="unix://$RUN/load.sock" NSM_CONNECT_TO="$1" GOPEERS_TIMEOUT=1s \
        GOPEERS_REFLECTION=false "$PEERS" probe | grep -q '"":"SERVING"'
}

registered() { healthy "unix://$RUN/$1.io" "$SPACE"; }

up_registry() {
    SPACE=vwb-$$
    ip netns add "$SPACE"
    ip -n "$SPACE" link set lo up
    GOPEERS_DIR=$RUN GOPEERS_NAMES=registry,nsmgr,forwarder,nse,load "$PEERS" workload </dev/null \
        >"$LOGS/workload.out" 2>&1 &
    PIDS[workload]=$!
    wait_for 10 "the issuer's sockets" test -S "$RUN/load.sock"
    start registry "$SPACE" "$PROGRAM" NSM_LISTEN_ON=tcp://127.0.0.1:5002 "$@" -- registry
    wait_for 20 "the registry" healthy tcp://127.0.0.1:5002 "$SPACE"
}

# up: a mesh of one node. The clients' interfaces are in the namespace of the load, the endpoints' in another.
up() {
    up_registry
    ip netns add "$SPACE-e"
    start nsmgr "$SPACE" "$PROGRAM" NSM_LISTEN_ON="unix://$RUN/nsmgr.io,tcp://127.0.0.1:5001" NSM_REGISTRY_URL=tcp://127.0.0.1:5002 -- nsmgr
    wait_for 20 "the nsmgr" registered nsmgr
    local engine=()
    if [ "$SIDE" = vwire ]; then
        printf '[workers]\ncores = [0]\n[api]\nsocket = "%s"\n[stats]\npath = "%s"\n' "$RUN/engine" "$RUN/engine.stats" >"$RUN/engine.toml"
        start engine "$SPACE" "$BIN/vwire-dataplane" -- --config "$RUN/engine.toml"
        wait_for 10 "the engine" test -S "$RUN/engine"
        engine=(VWIRE_DATAPLANE="unix://$RUN/engine" NSM_TUNNEL_IP=127.0.0.1)
    fi
    start forwarder "$SPACE" "$PROGRAM" NSM_DATAPLANE="${1:-kernel}" NSM_CONNECT_TO="unix://$RUN/nsmgr.io" \
        NSM_LISTEN_ON="unix://$RUN/forwarder.io" "${engine[@]}" -- forwarder
    wait_for 20 "the forwarder" registered forwarder
    start nse "$SPACE-e" "$PROGRAM" NSM_CONNECT_TO="unix://$RUN/nsmgr.io" NSM_LISTEN_ON="unix://$RUN/nse.io" \
        NSM_SERVICE_NAMES=icmp-responder NSM_CIDR_PREFIX=172.16.0.0/16 -- nse
    wait_for 20 "the endpoint" registered nse
}

down() {
    local name
    for name in "${!PIDS[@]}"; do kill -9 "${PIDS[$name]}" 2>/dev/null || true; done
    wait 2>/dev/null || true
    PIDS=()
    ip netns del "$SPACE" 2>/dev/null || true
    ip netns del "$SPACE-e" 2>/dev/null || true
    rm -rf "${RUN:?}"/*
}
undo down

# load CLIENTS COUNT: prints what the load tells.
load() {
    ip netns exec "$SPACE" env SPIFFE_ENDPOINT_SOCKET="unix://$RUN/load.sock" NSM_NAME=load NSM_QUIET=true GOPEERS_KEEP=true \
        NSM_CONNECT_TO="unix://$RUN/nsmgr.io" NSM_REQUEST_TIMEOUT=15s GOPEERS_CLIENTS="$1" GOPEERS_COUNT="$2" "$PEERS" load
}

# note ROW UNIT VALUE: one reading of this side.
note() { printf '%s\t%s\t%s\n' "$1" "$SIDE" "$2" >>"$FIGURES"; }

notes() { # PREFIX, JSON lines on standard input
    jq -r --arg prefix "$1" 'select(.per_second or .p99_ms) | .event as $e |
        (if .per_second then ["\($prefix) \($e) per second", .per_second] else empty end),
        ["\($prefix) \($e) p50 ms", .p50_ms], ["\($prefix) \($e) p99 ms", .p99_ms],
        (if (.failed // 0) > 0 then ["\($prefix) \($e) failed", .failed] else empty end) | @tsv' |
        while IFS=$'\t' read -r row value; do note "$row" "$value"; done
}

setup() {
    local clients
    for clients in 1 16 64; do
        up
        load "$clients" "$COUNT" >"$LOGS/$SIDE-load-$clients.json"
        notes "$(printf '%2d clients:' "$clients")" <"$LOGS/$SIDE-load-$clients.json"
        down
    done
}

resident() { # ROW: megabytes of each role
    local role
    for role in "${ROLES[@]}"; do
        note "MB $role, $1 connections" "$(awk '/VmRSS/ {printf "%.1f", $2 / 1024}' "/proc/${PIDS[$role]}/status")"
    done
}

memory() {
    local count
    for count in 100 1000; do
        up
        [ "$count" = 100 ] && resident "   0"
        mkfifo "$RUN/steps"
        (GOPEERS_STEP=true load 16 "$count" <"$RUN/steps" >"$RUN/told") &
        PIDS[steps]=$!
        exec 9>"$RUN/steps"
        echo go >&9
        wait_for 300 "$count connections" grep -q '"event":"request"' "$RUN/told"
        resident "$(printf '%4d' "$count")"
        exec 9>&-
        down
    done
}

registry() {
    local count settings
    for count in 1000 10000; do
        settings=()
        # With its policies, Go's registry does not get that far: each Register copies all names.
        [ "$SIDE" = go ] && [ "$count" = 10000 ] && settings=(NSM_REGISTRY_SERVER_POLICIES= NSM_EXPIRE_PERIOD=10m)
        up_registry "${settings[@]}"
        ip netns exec "$SPACE" env SPIFFE_ENDPOINT_SOCKET="unix://$RUN/load.sock" NSM_QUIET=true \
            NSM_CONNECT_TO=tcp://127.0.0.1:5002 GOPEERS_COUNT="$count" "$PEERS" regload >"$LOGS/$SIDE-registry-$count.json"
        notes "registry of $(printf '%5d' "$count"):" <"$LOGS/$SIDE-registry-$count.json"
        note "registry of $(printf '%5d' "$count"): MB" "$(awk '/VmRSS/ {printf "%.1f", $2 / 1024}' "/proc/${PIDS[registry]}/status")"
        down
    done
}

table() {
    awk -F'\t' '
        !($1 in seen) { seen[$1] = 1; rows[++n] = $1 }
        { value[$1, $2] = $3 }
        END {
            printf "%-52s %12s %12s %9s\n", "", "Go", "vwire", "ratio"
            for (i = 1; i <= n; i++) {
                go = value[rows[i], "go"]; ours = value[rows[i], "vwire"]; ratio = "-"
                if (go > 0 && ours > 0) ratio = sprintf("%.2f", ours / go)
                printf "%-52s %12s %12s %9s\n", rows[i], go == "" ? "-" : sprintf("%.1f", go), ours == "" ? "-" : sprintf("%.1f", ours), ratio
            }
        }' "$FIGURES"
}

step "Go peers" build_peers
for SIDE in "${SIDES[@]}"; do
    PROGRAM=$PEERS
    if [ "$SIDE" = vwire ]; then
        step "vwire" cargo build --release --locked -p vwire-control -p vwire-dataplane
        PROGRAM=$BIN/vwire
    fi
    for GROUP in "${WANTED[@]}"; do
        STEP="$SIDE: $GROUP"
        say "== $STEP"
        "$GROUP"
    done
done
say "" "$(nproc) cores; a forwarder of kernel interfaces (Go: veth by sdk-kernel); registry of 10000 on Go's side without policies"
table
