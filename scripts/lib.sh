# Shared by the scripts in this folder; sourced, not run.
# Steps are named and timed, a failure says which step and where its log is, and what was set up is taken down again.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
NAME=$(basename "$0" .sh)
LOGS=${VWIRE_LOGS:-$(mktemp -d "${TMPDIR:-/tmp}/vwire-$NAME.XXXXXX")}
mkdir -p "$LOGS"
STEP="start"
STEP_LOG=""
UNDO=()

say() { printf '%s\n' "$@"; }

# undo COMMAND...: runs COMMAND when the script ends, however it ends; the last one said runs first.
undo() { UNDO+=("$(printf '%q ' "$@")"); }

finish() {
    local status=$?
    trap - EXIT
    set +e
    if [ "$status" -ne 0 ]; then
        say "" "FAILED in step: $STEP (exit status $status)"
        if [ -n "$STEP_LOG" ] && [ -s "$STEP_LOG" ]; then
            say "its log: $STEP_LOG; the last lines:"
            tail -n 25 "$STEP_LOG"
        fi
    fi
    local i
    for ((i = ${#UNDO[@]} - 1; i >= 0; i--)); do eval "${UNDO[i]}" >>"$LOGS/cleanup.log" 2>&1; done
    if [ "$status" -eq 0 ] && [ -z "${VWIRE_LOGS:-}" ]; then rm -rf "$LOGS"; else say "logs: $LOGS"; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# step NAME COMMAND...: runs COMMAND with its output in a log, and says how long it took.
step() {
    STEP=$1
    shift
    STEP_LOG="$LOGS/$(printf '%s' "$STEP" | tr -c 'A-Za-z0-9' '-').log"
    local started=$SECONDS
    printf '== %-58s ' "$STEP"
    "$@" >"$STEP_LOG" 2>&1
    printf 'ok  %4d s\n' $((SECONDS - started))
}

# loud_step NAME COMMAND...: as step, but shows the output (and keeps it).
loud_step() {
    STEP=$1
    shift
    STEP_LOG="$LOGS/$(printf '%s' "$STEP" | tr -c 'A-Za-z0-9' '-').log"
    local started=$SECONDS
    say "== $STEP"
    "$@" 2>&1 | tee "$STEP_LOG"
    printf '== %-58s ok  %4d s\n' "$STEP" $((SECONDS - started))
}

# stop_pid PID: asks a process to end, and makes it end after 5 s.
stop_pid() {
    local i
    kill "$1" 2>/dev/null || return 0
    for ((i = 0; i < 50; i++)); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$1" 2>/dev/null || true
}

# wait_for SECONDS WHAT COMMAND...: repeats COMMAND until it succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            say "waited in vain for: $what"
            return 1
        fi
        sleep 0.05
    done
}

need_root() {
    if [ "$(id -u)" -ne 0 ]; then
        say "$NAME.sh makes network namespaces and installs packages: run it as root (sudo $0)."
        exit 1
    fi
}

need_rust() {
    if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH="$HOME/.cargo/bin:$PATH"; fi
    if ! command -v cargo >/dev/null; then
        say "Rust is missing. Install it with:"
        say "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy"
        exit 1
    fi
}

# The Go peers' module says which Go it needs (control/tests/go/go.mod).
need_go() {
    local wanted have
    if ! command -v go >/dev/null && [ -x /usr/local/go/bin/go ]; then PATH="/usr/local/go/bin:$PATH"; fi
    wanted=$(sed -n 's/^go //p' control/tests/go/go.mod)
    have=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
    if [ -z "$have" ] || [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
        say "The tests against Go peers need Go $wanted or newer (found: ${have:-none}). Install it with:"
        say "  curl -sSfL https://go.dev/dl/go1.26.0.linux-amd64.tar.gz | tar -C /usr/local -xz && export PATH=/usr/local/go/bin:\$PATH"
        exit 1
    fi
}

# need_packages PACKAGE...: installs the Debian packages that are missing, without starting the services that some bring.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        undo rm -f /usr/sbin/policy-rc.d
    fi
    step "install ${missing[*]}" install_packages "${missing[@]}"
}

install_packages() {
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# need_hugepages COUNT: reserves 2 MB pages for the time of the script. Fewer are a slower run, not a failure.
need_hugepages() {
    local now
    now=$(cat /proc/sys/vm/nr_hugepages)
    [ "$now" -ge "$1" ] && return 0
    undo sh -c "echo $now > /proc/sys/vm/nr_hugepages"
    echo "$1" >/proc/sys/vm/nr_hugepages || true
}
