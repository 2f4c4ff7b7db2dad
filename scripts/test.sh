#!/usr/bin/env bash
# Sets up what the tests need on a bare Debian 12 (root; rustup's stable toolchain and Go are the prerequisites) and runs them all:
# formatting, lints, unit tests, tests against real peers in their own network namespaces, loom, and each fuzz target briefly.
# VWIRE_WITHOUT_DPDK=1 leaves out what builds and tests the ports on DPDK's drivers, and installs no libdpdk-dev for it.
# Can be run twice; leaves no namespace, socket or huge page behind. VWIRE_LOGS=DIR keeps the logs there.
. "$(dirname "$0")/lib.sh"

need_root
need_rust
need_go
# build-essential and libclang are for libFuzzer's runtime; the rest are peers and witnesses.
need_packages build-essential iproute2 iputils-ping ethtool tcpdump iperf3 tshark nsd bind9-dnsutils mariadb-server jq curl nftables dpdk-dev openvswitch-switch
DPDK=()
if [ -z "${VWIRE_WITHOUT_DPDK:-}" ]; then
    need_packages libdpdk-dev libclang-dev pkg-config
    DPDK=(--features vwire-dataplane/dpdk)
fi
need_hugepages 128
modprobe tun 2>/dev/null || true

# The tests build them, too; here a failure says so by itself.
build_go_peers() (
    # One program of today's modules, and one of v0.2's, whose messages have the same names.
    for program in go:gopeers go02:go02; do (
        cd "control/tests/${program%:*}"
        test -z "$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }
        go vet ./...
        go build -buildvcs=false -o "../../../target/go-peers/${program#*:}" .
    ) || return; done
)

step "formatting" cargo fmt --all --check
step "lints (clippy, warnings are errors)" cargo clippy --workspace --all-targets --locked -- -D warnings
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked "${DPDK[@]}"
step "Go peers: vet and build" build_go_peers
step "build of tests" cargo test --workspace --locked --no-run
loud_step "tests" env VWIRE_LOGS="$LOGS/tests" scripts/run_tests.sh
# The lints and tests before are built without the feature. With it only vwire-dataplane is built again; --workspace keeps its dependencies as they are.
if [ ${#DPDK[@]} -gt 0 ]; then
    step "DPDK ports: lints" cargo clippy --workspace "${DPDK[@]}" --test 'dpdk_*' --test underlay_l2_dpdk --test lying_driver --locked -- -D warnings
    loud_step "DPDK ports: tests" cargo test --workspace "${DPDK[@]}" --test 'dpdk_*' --test underlay_l2_dpdk --test lying_driver --locked --no-fail-fast -- --test-threads=2
fi
step "loom: hand-off rings and table swap, every interleaving" env RUSTFLAGS="--cfg loom" \
    cargo test -p vwire-dataplane --lib --locked --target-dir target/loom loom
step "loom: memif queues, up to three preemptions" env RUSTFLAGS="--cfg loom" \
    cargo test -p memif --lib --locked --target-dir target/loom loom_model
loud_step "fuzz targets, briefly" scripts/fuzz.sh --seconds 5
say "all tests passed"
