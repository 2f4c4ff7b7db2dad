#!/usr/bin/env bash
# Measures the mesh beside the Go implementation on this machine, in one run, and prints its tables in Markdown with ratios: Requests,
# refreshes and Closes per second with their quantiles and each role's processor time, without a data plane, with kernel interfaces
# and with memif; each role's memory; the registry; and how soon a node, and two domains, serve again after each of their components
# was killed. All with mutual TLS, tokens and the default policies. Both sides are driven by the same program,
# control/examples/mesh_bench; its --help tells what it takes.
#   scripts/bench_mesh.sh [GROUP...] [--side go|vwire] [--seconds 4] [--clients 1,10,16,64,100] [--kills 20]
#                         [--data-plane none,kernel,kernel-memif,memif,memif-direct]
# groups: setup memory registry heal domains (all unless named; about 30 minutes on 2 cores, domains about 5 of them)
. "$(dirname "$0")/lib.sh"

need_root
need_rust
need_go
need_packages iproute2 nsd

PEERS=$ROOT/target/go-peers/gopeers

build_peers() (cd control/tests/go && go build -buildvcs=false -o "$PEERS" .)

step "Go peers" build_peers
step "vwire" cargo build --release --locked -p vwire-control -p vwire-dataplane --bins --example mesh_bench
STEP="measure"
target/release/examples/mesh_bench run --peers "$PEERS" --vwire target/release/vwire "$@"
say "" "$(nproc) cores. Go: a forwarder of kernel interfaces (veth by sdk-kernel), or of nothing; its registry of 10000 without policies."
